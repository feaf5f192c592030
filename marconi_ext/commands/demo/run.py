"""`marconi demo`: the same seeded traffic against stock SGLang and against SGLang with the extension."""

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from marconi_ext.errors import BadInputError
from marconi_ext.replay.client import GenerateClient
from marconi_ext.replay.measure import Figures, answers_that_differ, measure
from marconi_ext.replay.sender import Record, Run, replay
from marconi_ext.replay.warm_up import warm_up
from marconi_ext.results.folder import arm_folder
from marconi_ext.servers.arm_server import ServerOptions, started_together
from marconi_ext.servers.arms import Arm
from marconi_ext.servers.engine_options import to_flags
from marconi_ext.servers.server import Server
from marconi_ext.traces.script import Script

# For every arm's server alike. Prompts and answers are token ids, so that no tokenizer is needed. An idle
# scheduler would keep a core busy with polling while another arm is measured.
SERVER_OPTIONS: dict[str, object] = {"skip_tokenizer_init": True, "sleep_on_idle": True}
# The first token is sent at once, later ones in parcels: streaming one by one costs a small model more than
# computing them.
CPU_SERVER_OPTIONS: dict[str, object] = {"stream_interval": 32}


@dataclass(frozen=True, kw_only=True)
class DemoOptions(ServerOptions):
    """What to compare. workloads: name -> scripts; concurrency: requests in flight.

    logs: folder that keeps the servers' logs, else they are dropped
    side_by_side: start all servers at once, which takes memory for all; they are still asked one after another
    """

    arms: list[Arm]
    workloads: dict[str, list[Script]]
    concurrency: int = 1
    logs: Path | None = None
    side_by_side: bool = False


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

    def starting(self, arms: list[Arm]) -> None: ...

    def replaying(self, arm: Arm) -> None: ...

    def workload(self, arm: Arm, name: str, turns: int) -> None: ...

    def record(self, record: Record) -> None: ...

    def finished(self, result: ArmResult) -> None: ...


def run_demo(options: DemoOptions, watcher: Watcher) -> Iterator[ArmResult]:
    """Yield each arm's result when it is through; only one server is asked at a time.

    Raises ServerError, or CheckFailedError for an arm whose server isn't what its name says.
    """
    groups = [options.arms] if options.side_by_side else [[arm] for arm in options.arms]
    with log_folder(options.logs) as folder:
        for arms in groups:
            watcher.starting(arms)
            logs = {arm: folder / f"{arm_folder(arm.name)}.log" for arm in arms}
            with started_together(options, logs) as servers:
                for arm, running in zip(arms, servers, strict=True):
                    watcher.replaying(arm)
                    result = ArmResult(arm, running.flags, running.status_line, running.page_size)
                    play_workloads(options, running.server, result, watcher)
                    running.server.stop()
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


def quick_flags(*, cpu: bool) -> tuple[str, ...]:
    """Flags that save time in every arm's server and change no figure."""
    return tuple(to_flags(SERVER_OPTIONS | (CPU_SERVER_OPTIONS if cpu else {})))


@contextmanager
def log_folder(wanted: Path | None) -> Iterator[Path]:
    """The folder asked for, or one that goes when the demo ends. Raises BadInputError."""
    if wanted is not None:
        try:
            wanted.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInputError(f"--logs {wanted}: {error.strerror}") from None
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
