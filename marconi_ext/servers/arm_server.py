"""The server of one arm: asked for, started, and checked to be what the arm's name says."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from marconi_ext.servers.arms import Arm, require_status
from marconi_ext.servers.engine_options import CPU_OPTIONS, environment, to_flags
from marconi_ext.servers.server import Server, ServerSpec

AMPLE_STATE_SLOTS = 2_048
AMPLE_TOKENS = 400_000


@dataclass(frozen=True)
class ServerOptions:
    """What all arms' servers have in common.

    model_path: folder of the model; cpu: whether to run on the CPU platform
    state_slots, max_total_tokens: the server's two pools; None: ample on the CPU, SGLang's choice on a GPU
    extra_flags: for every server; launcher: as `ServerSpec.command`
    attention_model: folder for the arm `pure-attention`
    """

    model_path: Path
    cpu: bool
    state_slots: int | None = None
    max_total_tokens: int | None = None
    seed: int = 0
    extra_flags: tuple[str, ...] = ()
    start_timeout_s: float = 300.0
    request_timeout_s: float = 300.0
    launcher: tuple[str, ...] | None = None
    attention_model: Path | None = None


@dataclass(frozen=True)
class ArmServer:
    """A running server; flags: its command line but host and port; status_line: None for stock."""

    server: Server
    flags: list[str]
    status_line: str | None
    page_size: int


@contextmanager
def started(
    options: ServerOptions, arm: Arm, log: Path, on_wait: Callable[[float], None] | None = None
) -> Iterator[ArmServer]:
    """Start an arm's server, and stop it at the end. Raises as `started_together`."""
    with started_together(options, {arm: log}, on_wait) as (running,):
        yield running


@contextmanager
def started_together(
    options: ServerOptions, logs: Mapping[Arm, Path], on_wait: Callable[[float], None] | None = None
) -> Iterator[list[ArmServer]]:
    """Start a server for each arm side by side, and stop them all at the end. logs: a file for each arm.

    Raises ServerError, or CheckFailedError for a server that isn't what its arm's name says.
    """
    with ExitStack() as running:
        launched = []
        for arm, log in logs.items():
            flags = server_flags(options, arm)
            spec = ServerSpec(tuple(flags), environment(cpu=options.cpu), options.launcher)
            server = running.enter_context(Server(spec, log))
            server.launch()
            launched.append((arm, flags, server))
        found = []
        for arm, flags, server in launched:
            server.wait_until_healthy(options.start_timeout_s, on_wait)
            status = require_status(arm, server.log_text())
            found.append(ArmServer(server, flags, status, int(server.info().get("page_size") or 1)))
        yield found


def server_flags(options: ServerOptions, arm: Arm) -> list[str]:
    """The server's command-line flags, all but host and port; where one comes twice, the arm's holds."""
    pools = (options.max_total_tokens, options.state_slots)
    if options.cpu:  # memory of the host is no guide there, so both pools are always given
        pools = (pools[0] or AMPLE_TOKENS, pools[1] or AMPLE_STATE_SLOTS)
    chosen = {
        "model_path": options.attention_model if arm.attention_only else options.model_path,
        **(CPU_OPTIONS if options.cpu else {}),
        "max_total_tokens": pools[0],
        "max_mamba_cache_size": pools[1],
        "random_seed": options.seed,
    }
    return [*to_flags(chosen), *options.extra_flags, *arm.flags]
