"""The server of one arm: asked for, started, checked to be what the arm's name says, and warmed up."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from marconi_ext.arms import Arm, require_status
from marconi_ext.client import GenerateClient
from marconi_ext.engine_options import CPU_OPTIONS, ModelFacts, environment, to_flags
from marconi_ext.replay import replay
from marconi_ext.server import LAUNCHER, Server, ServerSpec
from marconi_ext.traces.script import Script, Turn, draw_tokens

AMPLE_STATE_SLOTS = 2_048
AMPLE_TOKENS = 400_000
WARM_UP_TOKENS = (600, 600, 600, 600)
GPU_WARM_UP_TOKENS = (*WARM_UP_TOKENS, 3_000, 3_000, 3_000, 3_000)  # kernels are tuned by the size of a batch
GPU_WARM_UP_CONCURRENCY = 4


@dataclass(frozen=True)
class ServerOptions:
    """What all arms' servers have in common.

    model_path: folder of the model; cpu: whether to run on the CPU platform
    state_slots, max_total_tokens: the server's two pools; None: ample on the CPU, SGLang's choice on a GPU
    extra_flags: for every server; launcher: command before the flags
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
    launcher: tuple[str, ...] = LAUNCHER
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


def warm_up(options: ServerOptions, server: Server) -> None:
    """Send a few prompts that share nothing, so that the first measured request finds a warm server.

    On a GPU, one by one and then four at once: Triton compiles and tunes its kernels there as shapes first come,
    for seconds.
    """
    rng = np.random.default_rng(0)
    facts = ModelFacts(options.model_path)
    lengths = WARM_UP_TOKENS if options.cpu else GPU_WARM_UP_TOKENS

    def scripts() -> list[Script]:
        prompts = [draw_tokens(rng, min(n, facts.context_tokens // 2), facts.vocabulary) for n in lengths]
        return [Script(f"warm-up/{i}", (Turn(p, 8, float(i)),)) for i, p in enumerate(prompts)]

    async def play() -> None:
        async with GenerateClient(server.url, timeout_s=options.request_timeout_s) as client:
            await replay(client, scripts(), 1)
            if not options.cpu:
                await replay(client, scripts(), GPU_WARM_UP_CONCURRENCY)

    asyncio.run(play())
