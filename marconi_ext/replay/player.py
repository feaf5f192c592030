"""Plays traffic against a live server into a results folder: requests, snapshots and their summary."""

import asyncio
import contextlib
import gc
import resource
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial

from marconi_ext.replay.client import StreamingClient
from marconi_ext.replay.outcome import INTERRUPTED, all_records, as_record, summarise
from marconi_ext.replay.schedule import Plan
from marconi_ext.replay.sender import Pacing, Record, Replay, Run
from marconi_ext.results.folder import RepeatFolder, RequestRecord, ServerSnapshot, Summary
from marconi_ext.servers.server_watch import ServerWatch

JOURNAL_S = 1.0
JOURNAL_LINES = 8  # at a time: half a millisecond, in which no request can be sent
FILES_BESIDES = 64  # open files that aren't connections


@dataclass(frozen=True)
class Played:
    """A run that has ended, however it ended, and its summary as written."""

    run: Run
    records: list[RequestRecord]
    summary: Summary


def play(
    plan: Plan,
    client: StreamingClient,
    pacing: Pacing,
    folder: RepeatFolder,
    *,
    url: str,
    api_key: str | None = None,
    watch_s: float = 1.0,
    page_size: int = 1,
    on_record: Callable[[Record, Replay], None] | None = None,
) -> Played:
    """Play a plan to its end, and write what came of it.

    Ctrl-C stops it: requests in flight are cancelled, and what there is is written. Lines are on disk within
    JOURNAL_S while it runs, and are replaced by the same with their ideal reuse at the end.

    url, api_key: of the server, which is looked at every watch_s seconds, 0 for only at the start and the end
    """
    allow_open_files(pacing.concurrency + FILES_BESIDES)
    snapshots: list[ServerSnapshot] = []
    with without_garbage_pauses():
        watch = partial(ServerWatch, url, watch_s, api_key=api_key)
        run = asyncio.run(_play(plan, client, pacing, folder, watch, snapshots, on_record))
    records = all_records(run, page_size)
    summary = summarise(records, run, snapshots)
    folder.write_requests(records)
    folder.write_summary(summary)
    return Played(run, records, summary)


async def _play(
    plan: Plan,
    client: StreamingClient,
    pacing: Pacing,
    folder: RepeatFolder,
    watch: Callable[[Callable[[ServerSnapshot], None]], ServerWatch],
    snapshots: list[ServerSnapshot],
    on_record: Callable[[Record, Replay], None] | None,
) -> Run:
    lines: list[RequestRecord | ServerSnapshot] = []

    def snapshot(taken: ServerSnapshot) -> None:
        snapshots.append(taken)
        lines.append(taken)

    ended: list[Record] = []

    def record(sent: Record) -> None:
        ended.append(sent)
        if on_record:
            on_record(sent, replay)

    replay = Replay(plan, client, pacing, record)
    folder.clear()
    try:
        with stopped_by_ctrl_c(replay):
            async with client, watch(snapshot), _journal(folder, lines, ended, replay):
                return await replay.run()
    finally:
        _write(folder, lines, ended, replay)


@contextlib.asynccontextmanager
async def _journal(
    folder: RepeatFolder, lines: list, ended: list[Record], replay: Replay
) -> AsyncIterator[None]:
    """Writes lines now and then while the run goes on, a few at a time, so that no request is late for it."""

    async def now_and_then() -> None:
        while True:
            await asyncio.sleep(JOURNAL_S)
            while lines or ended:
                _write(folder, lines, ended, replay, JOURNAL_LINES)
                await asyncio.sleep(0)

    task = asyncio.ensure_future(now_and_then())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _write(
    folder: RepeatFolder, lines: list, ended: list[Record], replay: Replay, most: int | None = None
) -> None:
    """Write what is there, or the oldest `most` of the requests, as lines."""
    lines += [as_record(record, replay.began_s) for record in ended[:most]]
    del ended[:most]
    folder.append(lines)
    lines.clear()


@contextlib.contextmanager
def stopped_by_ctrl_c(replay: Replay) -> Iterator[None]:
    """The first Ctrl-C stops the replay; a second one interrupts as ever."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        replay.stop(INTERRUPTED)
        loop.remove_signal_handler(signal.SIGINT)

    try:
        loop.add_signal_handler(signal.SIGINT, stop)
    except (ValueError, NotImplementedError):  # not the main thread
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


@contextlib.contextmanager
def without_garbage_pauses() -> Iterator[None]:
    """The trace's arrays needn't be looked through by the collector again and again."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def allow_open_files(wanted: int) -> None:
    """Raise the soft limit on open files as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    best = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < best:
        resource.setrlimit(resource.RLIMIT_NOFILE, (best, hard))
