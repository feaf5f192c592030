"""`marconi bench`: the same traffic against one arm's server after another, again and again."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from marconi_ext.errors import BadInputError
from marconi_ext.replay.client import GenerateClient
from marconi_ext.replay.outcome import INTERRUPTED, timing
from marconi_ext.replay.player import play
from marconi_ext.replay.progress import ReplayProgress
from marconi_ext.replay.sender import Pacing
from marconi_ext.replay.traffic import History, Traffic
from marconi_ext.replay.warm_up import warm_up
from marconi_ext.results.folder import ArmInfo, ResultsFolder, RunInfo, arm_folder
from marconi_ext.results.provenance import provenance, without_keys
from marconi_ext.results.run_folder import now
from marconi_ext.servers.arm_server import ArmServer, ServerOptions, started_together
from marconi_ext.servers.arms import Arm

LOGS = "logs"
SLEEP = (
    "--sleep-on-idle"  # of servers that wait for their turn: an idle scheduler keeps a core busy with polling
)


@dataclass(frozen=True, kw_only=True)
class BenchOptions(ServerOptions):
    """What to compare.

    arms: the first is what the others are compared with; traffics: all are played against each server
    repeats: of every arm, in alternating order
    side_by_side: all servers stay up together (which takes memory for all), play each traffic in turn and
    are flushed before each run, so that what a shared machine does meanwhile hits all of them
    folder: one results folder, or one a traffic inside it
    history: as in results.Timing; watch_s: see player.play
    """

    arms: list[Arm]
    traffics: list[Traffic]
    pacing: Pacing
    folder: Path
    history: History = "own"
    repeats: int = 1
    side_by_side: bool = False
    watch_s: float = 1.0


class StoppedError(KeyboardInterrupt):
    """Ctrl-C, after what there was has been written."""


def results_folders(options: BenchOptions) -> dict[str, ResultsFolder]:
    """Where each traffic's results go, by its name."""
    if len(options.traffics) == 1:
        return {options.traffics[0].name: ResultsFolder(options.folder)}
    return {traffic.name: ResultsFolder(options.folder / traffic.name) for traffic in options.traffics}


def groups(options: BenchOptions) -> Iterator[tuple[list[Arm], list[tuple[int, list[Arm]]]]]:
    """(arms whose servers are up together, [(repeat, those of them that play, in order)]).

    There and back again, so that a machine that drifts favours nobody.
    """
    plays = [(r, options.arms[::-1] if r % 2 else options.arms) for r in range(options.repeats)]
    if options.side_by_side:
        yield options.arms, plays
        return
    for repeat, arms in plays:
        for arm in arms:
            yield [arm], [(repeat, [arm])]


def run_bench(options: BenchOptions, progress: ReplayProgress) -> dict[str, ResultsFolder]:
    """Play everything; results are on disk after each run. Only one server is asked at a time.

    Raises ServerError, CheckFailedError for a server that isn't what its arm's name says, StoppedError.
    """
    folders = results_folders(options)
    if options.side_by_side and options.cpu and SLEEP not in options.extra_flags:
        options = replace(options, extra_flags=(*options.extra_flags, SLEEP))
    runs = options.repeats * len(options.arms)
    progress.expect(runs * sum(len(traffic.plan().items) for traffic in options.traffics))
    infos = {traffic.name: _run_info(options, traffic) for traffic in options.traffics}
    try:
        for arms, plays in groups(options):
            progress.wait(f"starting {', '.join(arm.name for arm in arms)}")
            (options.folder / LOGS).mkdir(parents=True, exist_ok=True)
            logs = {arm: options.folder / LOGS / f"{arm_folder(arm.name)}-{plays[0][0]}.log" for arm in arms}
            with started_together(options, logs) as found:
                servers = {arm: running for arm, running in zip(arms, found, strict=True)}
                for running in found:
                    warm_up(options, running.server)
                for repeat, playing in plays:
                    for traffic in options.traffics:
                        info, folder = infos[traffic.name], folders[traffic.name]
                        for arm in playing:
                            noted = _note(info, arm, servers[arm], repeat)
                            folder.write_run(info)
                            _play(options, traffic, servers[arm], folder, noted, repeat, progress)
    except BaseException as reason:
        error = str(reason) if isinstance(reason, Exception) else INTERRUPTED
        with contextlib.suppress(BadInputError, OSError):  # a full disk must not hide why the run ended
            for name, folder in folders.items():
                folder.write_run(infos[name].model_copy(update={"error": error}))
        raise
    for name, folder in folders.items():
        folder.write_run(infos[name].model_copy(update={"finished": True}))
    return folders


def _play(
    options: BenchOptions,
    traffic: Traffic,
    running: ArmServer,
    folder: ResultsFolder,
    info: ArmInfo,
    repeat: int,
    progress: ReplayProgress,
) -> None:
    running.server.flush_cache()
    plan = traffic.plan()
    name = f"{info.name}, {traffic.name}, repeat {repeat + 1} of {options.repeats}"
    progress.open_bar(name, len(plan.items))
    played = play(
        plan,
        GenerateClient(running.server.url, timeout_s=options.request_timeout_s),
        options.pacing,
        folder.repeat(info, repeat),
        url=running.server.url,
        watch_s=options.watch_s,
        page_size=running.page_size,
        on_record=lambda record, live: progress.record(record, live.open_requests),
    )
    progress.close_bar()
    if played.summary.error == INTERRUPTED:
        raise StoppedError
    running.server.require_alive()


def _run_info(options: BenchOptions, traffic: Traffic) -> RunInfo:
    return RunInfo(
        created=now(),
        title=traffic.name,
        provenance=provenance(options.seed),
        model={"path": str(options.model_path), "platform": "cpu" if options.cpu else "gpu"},
        trace=traffic.info,
        timing=timing(options.pacing, options.history),
        arms=[],
        repeats=options.repeats,
    )


def _note(info: RunInfo, arm: Arm, running: ArmServer, repeat: int) -> ArmInfo:
    """Take an arm into run.json as soon as its server is known to be what its name says."""
    found = ArmInfo(
        name=arm.name,
        folder=arm_folder(arm.name),
        meaning=arm.meaning,
        flags=without_keys(running.flags),
        status_line=running.status_line,
        page_size=running.page_size,
    )
    names = [known.name for known in info.arms]
    if arm.name in names:
        info.arms[names.index(arm.name)] = found
    else:
        info.arms.append(found)
    info.order.append((arm.name, repeat))
    return found
