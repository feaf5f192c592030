"""Plays a plan against a live server: on the trace's times or in a closed loop, and always to an end."""

import asyncio
import contextlib
import heapq
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from marconi_ext.errors import BadInputError
from marconi_ext.replay.client import OK, Answer, StreamingClient
from marconi_ext.replay.schedule import Item, Plan, ScriptPlan
from marconi_ext.traces.script import Script

GIVE_UP_AFTER = 5  # failures in a row: the server is gone or can't serve this
RETRIED = {"connection"}
RETRIED_HTTP = {429, 502, 503, 504}  # "later": the server did nothing yet
LAG_S = 0.05
TIMER_STEP_S = 0.001  # epoll counts in milliseconds, rounded up


@dataclass(frozen=True)
class Pacing:
    """When requests go out.

    concurrency: most requests in flight; timed: keep the trace's times (divided by speed), else send as
    soon as there is room; max_rate: requests a second at most
    retries: further attempts for a request that the server didn't take (RETRIED, RETRIED_HTTP), backoff_s
    before the first and twice as long before each next one
    give_up_after: failures in a row that end the run; None: never
    Raises BadInputError for a speed or rate that is no positive number; messages name the commands' flags.
    """

    concurrency: int = 1
    timed: bool = False
    speed: float = 1.0
    max_rate: float | None = None
    retries: int = 0
    backoff_s: float = 0.25
    give_up_after: int | None = GIVE_UP_AFTER

    def __post_init__(self) -> None:
        for flag, value in (("--speed", self.speed), ("--max-rate", self.max_rate)):
            if value is not None and not 0 < value < math.inf:
                raise BadInputError(f"{flag} {value:g}: must be a positive number")


@dataclass(frozen=True, eq=False)
class Record:
    """One request that was sent: who asked, its prompt int32[L], and what came of it.

    due_s, ready_s: when the trace wanted it, and when it could go; time.perf_counter() seconds, or None
    """

    session_id: str
    turn: int
    prompt: np.ndarray
    answer: Answer
    due_s: float | None = None
    ready_s: float | None = None


@dataclass(frozen=True)
class Run:
    """All requests sent, in the order in which they ended, and those never sent.

    began_s: time.perf_counter() at the start; most_open: in flight at once
    loop_lag_s: by how much the event loop was late, sampled; stopped: why the run ended early, or None
    """

    records: list[Record]
    left: list[Item] = field(default_factory=list)
    began_s: float = 0.0
    most_open: int = 0
    loop_lag_s: list[float] = field(default_factory=list)
    stopped: str | None = None

    @property
    def failed(self) -> list[Record]:
        return [record for record in self.records if record.answer.status != OK]

    @property
    def unsent(self) -> int:
        return len(self.left)


@dataclass
class _Open:
    """A request in flight."""

    index: int
    prompt: np.ndarray
    ready_s: float
    sent_s: float


class Replay:
    """One run of a plan. `stop` ends it early, from a signal handler for instance."""

    def __init__(
        self,
        plan: Plan,
        client: StreamingClient,
        pacing: Pacing,
        on_record: Callable[[Record], None] | None = None,
    ) -> None:
        self._plan, self._client, self._pacing, self._on_record = plan, client, pacing, on_record
        self._missing = [len(item.after) for item in plan.items]
        self._followers: list[list[int]] = [[] for _ in plan.items]
        for index, item in enumerate(plan.items):
            for before in item.after:
                self._followers[before].append(index)
        self._ready: list[tuple[float, int, float]] = []  # (due, index, since when it waits for no other)
        self._open: dict[asyncio.Task, _Open] = {}
        self._ended: list[asyncio.Task] = []
        self._wake = asyncio.Event()
        self._records: list[Record] = []
        self._sent: set[int] = set()
        self._bodies: dict[int, tuple[np.ndarray, bytes]] = {}
        self._failures_in_a_row = 0
        self._may_send_s = 0.0
        self._most_open = 0
        self._stopped: str | None = None
        self.began_s = 0.0

    @property
    def open_requests(self) -> int:
        return len(self._open)

    def stop(self, why: str) -> None:
        """Send nothing more, and end the requests in flight as cancelled."""
        self._stopped = self._stopped or why
        self._wake.set()

    async def run(self) -> Run:
        """Send all of the plan. A run that is cancelled from outside raises, after its requests ended."""
        self.began_s = self._may_send_s = time.perf_counter()
        for index, missing in enumerate(self._missing):
            if not missing:
                self._push(index, self.began_s)
        lags: list[float] = []
        meter = asyncio.ensure_future(_measure_lag(lags))
        try:
            while self._stopped is None:
                pause_s = self._send_what_may_go()
                if not self._open and not self._ready:
                    break
                await self._sleep(pause_s)
                self._collect()
        finally:
            meter.cancel()
            await self._cancel_open()
        left = [item for index, item in enumerate(self._plan.items) if index not in self._sent]
        return Run(self._records, left, self.began_s, self._most_open, lags, self._stopped)

    def _push(self, index: int, now_s: float) -> None:
        due_s = self._due_s(index) if self._pacing.timed else 0.0
        heapq.heappush(self._ready, (due_s, index, now_s))

    def _due_s(self, index: int) -> float:
        return self.began_s + self._plan.items[index].due_s / self._pacing.speed

    def _send_what_may_go(self) -> float | None:
        """Returns the seconds until the next request may go, or None if another must end before."""
        while self._ready and len(self._open) < self._pacing.concurrency:
            due_s, index, free_s = self._ready[0]
            now_s = time.perf_counter()
            wait_s = max(due_s, self._may_send_s) - now_s
            if wait_s > 0:
                self._prepare(index)  # so that nothing but sending is left when its time has come
                return wait_s
            heapq.heappop(self._ready)
            if self._pacing.max_rate:
                gap_s = 1 / self._pacing.max_rate
                self._may_send_s = max(self._may_send_s, now_s - gap_s) + gap_s
            self._send(index, max(due_s, free_s))
        return None

    def _prepare(self, index: int) -> tuple[np.ndarray, bytes]:
        if index not in self._bodies:
            prompt = self._plan.prompt(index)
            body = self._client.body(prompt, self._plan.items[index].answer_tokens)
            self._bodies[index] = prompt, body
        return self._bodies[index]

    def _send(self, index: int, ready_s: float) -> None:
        prompt, body = self._prepare(index)
        del self._bodies[index]
        task = asyncio.ensure_future(self._ask(body, self._plan.items[index].answer_tokens))
        self._open[task] = _Open(index, prompt, ready_s, time.perf_counter())
        self._most_open = max(self._most_open, len(self._open))
        self._sent.add(index)
        task.add_done_callback(self._note_end)

    async def _ask(self, body: bytes, answer_tokens: int) -> Answer:
        """The first answer that isn't a refusal, or the last refusal, with the attempts before in it."""
        first_s = time.perf_counter()
        backoff_s = self._pacing.backoff_s
        for attempt in range(self._pacing.retries + 1):
            answer = await self._client.send(body, answer_tokens)
            refused = answer.status in RETRIED or answer.http_status in RETRIED_HTTP
            if not refused or attempt == self._pacing.retries:
                break
            await asyncio.sleep(max(backoff_s, min(answer.retry_after_s or 0.0, 30.0)))
            backoff_s *= 2
        if attempt:
            retry_s = answer.sent_s - first_s
            answer = replace(answer, sent_s=first_s, retries=attempt, retry_s=retry_s)
        return answer

    def _note_end(self, task: asyncio.Task) -> None:
        self._ended.append(task)
        self._wake.set()

    async def _sleep(self, pause_s: float | None) -> None:
        """Until something ends, or until the pause is nearly over: the last millisecond is spent in the loop,
        which does other work then, because a timer may be as much too late."""
        loop = asyncio.get_running_loop()
        timer = None
        if pause_s is not None:
            timer = loop.call_later(max(pause_s - TIMER_STEP_S, 0.0), self._wake.set)
        await self._wake.wait()
        self._wake.clear()
        if timer:
            timer.cancel()

    def _collect(self) -> None:
        ended, self._ended = self._ended, []
        for task in sorted(ended, key=lambda t: t.result().end_s):
            self._end(self._open.pop(task), task.result())

    def _end(self, request: _Open, answer: Answer) -> None:
        self._add_record(request, answer)
        index, ok = request.index, answer.status == OK
        if ok:
            self._plan.answered(index, request.prompt, answer.output_ids)
        self._failures_in_a_row = 0 if ok else self._failures_in_a_row + 1
        limit = self._pacing.give_up_after
        if limit and self._failures_in_a_row >= limit:
            self.stop(f"gave up after {limit} failures in a row, the last one: {answer.error}")
        if ok or not self._plan.needs_answers:
            for follower in self._followers[index]:
                self._missing[follower] -= 1
                if not self._missing[follower]:
                    self._push(follower, answer.end_s)

    def _add_record(self, request: _Open, answer: Answer) -> None:
        item = self._plan.items[request.index]
        due_s = self._due_s(request.index) if self._pacing.timed else None
        record = Record(item.session_id, item.turn, request.prompt, answer, due_s, request.ready_s)
        self._records.append(record)
        if self._on_record:
            self._on_record(record)

    async def _cancel_open(self) -> None:
        """End what is still in flight; answers that came at the last moment count."""
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        for task, request in self._open.items():
            if task.cancelled() or task.exception():
                why = self._stopped or "the run was cancelled"
                answer = Answer(
                    "cancelled", why, request.sent_s, None, time.perf_counter(), cached_tokens=None
                )
                self._add_record(request, answer)
            else:
                self._add_record(request, task.result())
        self._open.clear()


async def replay(
    client: StreamingClient,
    scripts: Sequence[Script],
    concurrency: int,
    on_record: Callable[[Record], None] | None = None,
) -> Run:
    """Play scripts in a closed loop, up to `concurrency` at once; a turn waits for those it builds on."""
    return await Replay(ScriptPlan(scripts), client, Pacing(concurrency), on_record).run()


async def _measure_lag(lags: list[float]) -> None:
    """Collect by how much short sleeps were too long, until cancelled."""
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            before_s = time.perf_counter()
            await asyncio.sleep(LAG_S)
            lags.append(time.perf_counter() - before_s - LAG_S)
