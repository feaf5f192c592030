"""`marconi demo`: the same seeded traffic against stock SGLang and against SGLang with the extension."""

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from marconi_ext.arms import Arm, require_status
from marconi_ext.client import GenerateClient
from marconi_ext.engine_options import CPU_OPTIONS, ModelFacts, environment, to_flags
from marconi_ext.measure import Figures, answers_that_differ, measure
from marconi_ext.replay import Record, Run, replay
from marconi_ext.server import LAUNCHER, Server, ServerSpec
from marconi_ext.traces.script import Script, Turn, draw_tokens

AMPLE_STATE_SLOTS = 2_048
AMPLE_TOKENS = 400_000
WARM_UP_REQUESTS = 4


@dataclass(frozen=True)
class DemoOptions:
    """What to compare.

    model_path: folder of the model; cpu: whether to run on the CPU platform
    workloads: name -> scripts; concurrency: requests in flight
    state_slots, max_total_tokens: the server's two pools; None: ample on the CPU, SGLang's choice on a GPU
    extra_flags: for every arm's server; logs: folder that keeps the servers' logs, else they are dropped
    launcher: command before the flags; attention_model: folder for the arm `pure-attention`
    """

    model_path: Path
    cpu: bool
    arms: list[Arm]
    workloads: dict[str, list[Script]]
    concurrency: int = 1
    state_slots: int | None = None
    max_total_tokens: int | None = None
    seed: int = 0
    extra_flags: tuple[str, ...] = ()
    start_timeout_s: float = 300.0
    request_timeout_s: float = 300.0
    logs: Path | None = None
    launcher: tuple[str, ...] = LAUNCHER
    attention_model: Path | None = None


@dataclass
class ArmResult:
    """One arm's figures, in all and by workload, and how its server was asked for."""

    arm: Arm
    server_flags: list[str]
    status_line: str | None
    page_size: int
    runs: dict[str, Run] = field(default_factory=dict)

    def total(self) -> Figures:
        return measure(list(self.runs.values()), self.page_size)

    def by_workload(self) -> dict[str, Figures]:
        return {name: measure([run], self.page_size) for name, run in self.runs.items()}

    def incomplete(self) -> bool:
        return any(run.failed or run.unsent for run in self.runs.values())


class Watcher:
    """Told what happens while a demo runs; this one keeps quiet."""

    def starting(self, arm: Arm) -> None: ...

    def waiting(self, arm: Arm, waited_s: float) -> None: ...

    def workload(self, arm: Arm, name: str, turns: int) -> None: ...

    def record(self, record: Record) -> None: ...

    def finished(self, result: ArmResult) -> None: ...


def run_demo(options: DemoOptions, watcher: Watcher) -> Iterator[ArmResult]:
    """Yield each arm's result when it is through; servers run one after another, never two at once.

    Raises ServerError, or CheckFailedError for an arm whose server isn't what its name says.
    """
    with log_folder(options.logs) as logs:
        for arm in options.arms:
            flags = server_flags(options, arm)
            watcher.starting(arm)
            spec = ServerSpec(tuple(flags), environment(cpu=options.cpu), options.launcher)
            with Server(spec, logs / f"{arm.name}.log") as server:
                server.start(options.start_timeout_s, lambda s, arm=arm: watcher.waiting(arm, s))
                status = require_status(arm, server.log_text())
                result = ArmResult(arm, flags, status, int(server.info().get("page_size") or 1))
                play_workloads(options, server, result, watcher)
            watcher.finished(result)
            yield result


def play_workloads(options: DemoOptions, server: Server, result: ArmResult, watcher: Watcher) -> None:
    """Warm up, then play each workload against an empty cache. Mutates result."""
    asyncio.run(play(options, server, warm_up_scripts(options.model_path), lambda record: None))
    for name, scripts in options.workloads.items():
        server.flush_cache()
        watcher.workload(result.arm, name, sum(len(script.turns) for script in scripts))
        result.runs[name] = asyncio.run(play(options, server, scripts, watcher.record))
        server.require_alive()


async def play(
    options: DemoOptions, server: Server, scripts: list[Script], on_record: Callable[[Record], None]
) -> Run:
    async with GenerateClient(server.url, timeout_s=options.request_timeout_s) as client:
        return await replay(client, scripts, options.concurrency, on_record)


def warm_up_scripts(model_path: Path) -> list[Script]:
    """A few prompts that share nothing, so that the first measured request finds a warm server."""
    rng = np.random.default_rng(0)
    vocabulary = ModelFacts(model_path).vocabulary
    return [
        Script(f"warm-up/{i}", (Turn(draw_tokens(rng, 600, vocabulary), 8, float(i)),))
        for i in range(WARM_UP_REQUESTS)
    ]


def server_flags(options: DemoOptions, arm: Arm) -> list[str]:
    """The server's command-line flags, all but host and port."""
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
    return [*to_flags(chosen), *arm.flags, *options.extra_flags]


@contextmanager
def log_folder(wanted: Path | None) -> Iterator[Path]:
    """The folder asked for, or one that goes when the demo ends."""
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        yield wanted
        return
    with tempfile.TemporaryDirectory(prefix="marconi-demo-") as folder:
        yield Path(folder)


def as_json(results: list[ArmResult], provenance: dict, error: str | None = None) -> dict:
    """The result file: {arms: [{name, state_limited_loss, …, workloads: {name: {…}}}], provenance}."""
    arms = []
    for result in results:
        arms.append(
            {
                "name": result.arm.name,
                "meaning": result.arm.meaning,
                **result.total().as_json(),
                "answers_differing": answers_differing(result, results[0]),
                "status_line": result.status_line,
                "server_flags": result.server_flags,
                "workloads": {name: figures.as_json() for name, figures in result.by_workload().items()},
            }
        )
    return {"arms": arms, "error": error, "provenance": provenance}


def answers_differing(result: ArmResult, first: ArmResult) -> int:
    """Requests that this arm answered otherwise than the first arm, on the same prompt."""
    shared = [name for name in result.runs if name in first.runs]
    return sum(answers_that_differ(result.runs[name], first.runs[name]) for name in shared)
