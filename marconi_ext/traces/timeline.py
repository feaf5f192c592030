"""Puts sessions on one time line: their own times where the trace has them, seeded draws where it hasn't."""

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from marconi_ext.traces.chat import Call
from marconi_ext.traces.request import Request


@dataclass(frozen=True)
class Arrivals:
    """Arrival process for traces without times, as in Marconi's evaluation (Poisson sessions).

    sessions_per_s: mean rate at which sessions begin
    response_s: mean time between two requests of a session (exponential)
    """

    seed: int = 0
    sessions_per_s: float = 1.0
    response_s: float = 5.0

    def starts_s(self) -> Iterator[float]:
        """Session starts, without end."""
        rng = np.random.default_rng([self.seed, 1])
        now_s = 0.0
        while True:
            now_s += float(rng.exponential(1 / self.sessions_per_s))
            yield now_s

    def turns_s(self, index: int, start_s: float, turns: int) -> list[float]:
        """The times of one session's turns; they depend on the seed and the session's index alone."""
        rng = np.random.default_rng([self.seed, 2, index])
        waits = rng.exponential(self.response_s, size=max(turns - 1, 0))
        return [start_s, *(start_s + np.cumsum(waits)).tolist()]


@dataclass(frozen=True)
class Session:
    """A session before it is tokenised.

    times_s: one a call, or None where the trace tells none
    build: tokenises the session's calls; called when the session's first request is due
    """

    session_id: str
    turns: int
    build: Callable[[], list[Call]]
    times_s: list[float] | None = None


def place(
    sessions: Iterable[Session], arrivals: Arrivals, without_times: Callable[[Session], None] = lambda _: None
) -> Iterator[Request]:
    """Yield all sessions' requests in time order, from arrival_s = 0 on.

    Sessions with times are read to the end first, to sort them; sessions without are taken one by one.
    without_times: told of each session that has none in a trace that has; it begins at a drawn time among the others
    """
    sessions = iter(sessions)
    first = next(sessions, None)
    if first is None:
        return
    if first.times_s is None:
        yield from _merge(_drawn(first, sessions, arrivals))
    else:
        timed = list(_timed([first, *sessions], arrivals, without_times))
        yield from _merge(iter(sorted(timed, key=lambda pair: pair[0][0])))


def _timed(
    sessions: list[Session], arrivals: Arrivals, without_times: Callable[[Session], None]
) -> Iterator[tuple[list[float], Session]]:
    starts = [session.times_s[0] for session in sessions if session.times_s]
    rng = np.random.default_rng([arrivals.seed, 3])
    for index, session in enumerate(sessions):
        if session.times_s:
            yield session.times_s, session
        elif session.turns:
            without_times(session)
            start_s = float(rng.uniform(min(starts), max(starts)))
            yield arrivals.turns_s(index, start_s, session.turns), session


def _drawn(
    first: Session, rest: Iterator[Session], arrivals: Arrivals
) -> Iterator[tuple[list[float], Session]]:
    def chained() -> Iterator[Session]:
        yield first
        yield from rest

    for index, (start_s, session) in enumerate(zip(arrivals.starts_s(), chained(), strict=False)):
        yield arrivals.turns_s(index, start_s, session.turns), session


def _merge(timed: Iterator[tuple[list[float], Session]]) -> Iterator[Request]:
    """Merge sessions that come in order of their start; holds only those under way."""
    heap: list[tuple[float, int, int]] = []  # time, session's number, turn
    live: dict[int, tuple[list[float], Session, list[Call]]] = {}
    upcoming = next(timed, None)
    number, zero_s = 0, None
    while heap or upcoming:
        while upcoming and (not heap or upcoming[0][0] <= heap[0][0]):
            times_s, session = upcoming
            times_s = np.maximum.accumulate(times_s).tolist()  # a session's turns can't overtake each other
            live[number] = (times_s, session, [])
            heapq.heappush(heap, (times_s[0], number, 0))
            number, upcoming = number + 1, next(timed, None)
        now_s, key, turn = heapq.heappop(heap)
        times_s, session, calls = live[key]
        if turn == 0:
            calls.extend(session.build())
        zero_s = now_s if zero_s is None else zero_s
        if turn < len(calls):
            call = calls[turn]
            yield Request(
                session.session_id, turn, now_s - zero_s, call.input_ids, call.output_ids, call.boundaries
            )
        if turn + 1 < min(len(times_s), len(calls)):
            heapq.heappush(heap, (times_s[turn + 1], key, turn + 1))
        else:
            del live[key]
