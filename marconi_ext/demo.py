"""`marconi demo`: the same seeded traffic against stock SGLang and against SGLang with the extension."""

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from marconi_ext.arm_server import ServerOptions, started, warm_up
from marconi_ext.arms import Arm
from marconi_ext.client import GenerateClient
from marconi_ext.measure import Figures, answers_that_differ, measure
from marconi_ext.replay import Record, Run, replay
from marconi_ext.results import arm_folder
from marconi_ext.server import Server
from marconi_ext.traces.script import Script


@dataclass(frozen=True, kw_only=True)
class DemoOptions(ServerOptions):
    """What to compare. workloads: name -> scripts; concurrency: requests in flight.

    logs: folder that keeps the servers' logs, else they are dropped
    """

    arms: list[Arm]
    workloads: dict[str, list[Script]]
    concurrency: int = 1
    logs: Path | None = None


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
            watcher.starting(arm)
            log = logs / f"{arm_folder(arm.name)}.log"
            with started(options, arm, log, lambda s, arm=arm: watcher.waiting(arm, s)) as running:
                result = ArmResult(arm, running.flags, running.status_line, running.page_size)
                play_workloads(options, running.server, result, watcher)
            watcher.finished(result)
            yield result


def play_workloads(options: DemoOptions, server: Server, result: ArmResult, watcher: Watcher) -> None:
    """Warm up, then play each workload against an empty cache. Mutates result."""
    warm_up(options, server)
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
