"""Which α would have saved most? All of them are replayed at once over a log of small integers.

The replay knows no tokens and no trees: a record is a position that was offered, with its depth and the record
above it; a request is the records that it went through and those that it offered. Each α has a pool of as many
states as the cache held, one row of a matrix, so that a step for all α is one pass over [alphas, slots].
`tune_alpha` is a pure function of a picklable log: it may run in another process, and any process gets the same α.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from marconi_ext.policies.currency import Currency

ALPHAS = np.round(np.arange(21) * 0.1, 1)


@dataclass(frozen=True)
class TuningLog:
    """depth, parent: int64[records] (parent -1: none); request i went through `path[path_ends[i-1]:path_ends[i]]`,
    shallow first, and offered `offers[offer_ends[i-1]:offer_ends[i]]`. slots: states that the cache held."""

    depth: np.ndarray
    parent: np.ndarray
    path: np.ndarray
    path_ends: np.ndarray
    offers: np.ndarray
    offer_ends: np.ndarray
    slots: int
    currency: Currency

    @property
    def requests(self) -> int:
        return len(self.path_ends)


def tune_alpha(log: TuningLog) -> float:
    """The α of `ALPHAS` that saved most FLOPs; the lowest of equals."""
    return float(ALPHAS[int(saved_flops(log).argmax())])


def saved_flops(log: TuningLog) -> np.ndarray:
    """FLOPs that each α of `ALPHAS` saves from empty pools: float64[alphas]."""
    pools = _Pools(log)
    saved = np.zeros(len(ALPHAS))
    worth = log.currency.worth(log.depth, np.zeros(1))
    paths = np.split(log.path, log.path_ends[:-1])
    offers = np.split(log.offers, log.offer_ends[:-1])
    for tick, (path, offered) in enumerate(zip(paths, offers, strict=True), start=1):
        pools.release()
        if len(path):
            served = pools.touch_deepest(path, tick)
            saved += np.where(served >= 0, worth[served], 0.0)
        for record in offered.tolist():
            pools.offer(record, tick)
    return saved


class _Pools:
    """One pool of states for each α. Records are numbered in depth-first order inside, so that those below one
    are an interval. What a slot's record says stands beside it: [alphas, slots]."""

    def __init__(self, log: TuningLog) -> None:
        self._log = log
        self._first, self._last = _intervals(log.parent)
        n = len(ALPHAS)
        self._slot = np.full((n, len(log.depth)), -1, np.int64)  # [alpha, record] -> slot
        self._record = np.full((n, log.slots), -1, np.int64)
        self._starts = np.full((n, log.slots), -1, np.int64)  # the record's interval
        self._ends = np.full((n, log.slots), -1, np.int64)
        self._use = np.zeros((n, log.slots), np.int64)
        self._above = np.zeros((n, log.slots), np.int64)  # depth of the nearest live record above
        self._depth = np.zeros((n, log.slots), np.int64)
        self._held = np.zeros(n, np.int64)
        self._pinned = np.full(n, -1, np.int64)  # slot of the state that serves the running request

    def release(self) -> None:
        """The request before has ended."""
        self._pinned[:] = -1

    def touch_deepest(self, path: np.ndarray, tick: int) -> np.ndarray:
        """The deepest live record of `path` for each α, -1: none; it is used now."""
        live = self._slot[:, path[::-1]] >= 0
        served = np.where(live.any(axis=1), path[::-1][live.argmax(axis=1)], -1)
        at = (served >= 0).nonzero()[0]
        self._pinned[at] = self._slot[at, served[at]]
        self._use[at, self._slot[at, served[at]]] = tick
        return served

    def offer(self, record: int, tick: int) -> None:
        slots = self._slot[:, record]
        held = (slots >= 0).nonzero()[0]
        self._use[held, slots[held]] = tick
        rows = (slots < 0).nonzero()[0]
        if len(rows) == 0:
            return
        target = self._held[rows].copy()
        full = (target == self._log.slots).nonzero()[0]
        if len(full):
            target[full] = self._evict(rows[full], tick)
        self._held[rows] = np.minimum(self._held[rows] + 1, self._log.slots)
        self._place(rows, target, record, tick)

    def _evict(self, rows: np.ndarray, tick: int) -> np.ndarray:
        """Free the slot with the lowest utility in each full row; returns the slots."""
        some = self._some(rows)
        scores = np.empty((2, len(rows), self._log.slots))
        np.divide(1.0, tick + 1 - self._use[some], out=scores[0])
        scores[1] = self._log.currency.worth(self._depth[some], self._above[some])
        pinned = (self._pinned[rows] >= 0).nonzero()[0] if self._log.slots > 1 else rows[:0]
        held = self._pinned[rows[pinned]]
        # those that a running request holds are as their neighbours, so that the scale is the others'
        scores[:, pinned, held] = scores[:, pinned, held - 1]
        recency, efficiency = _scaled(scores)
        utility = recency + ALPHAS[rows, None] * efficiency
        utility[pinned, held] = np.inf
        victim = utility.argmin(axis=1)
        gone = self._record[rows, victim]
        above = self._above[rows, victim]
        self._slot[rows, gone] = -1
        self._record[rows, victim] = self._starts[rows, victim] = self._ends[rows, victim] = -1
        served = self._below(some, gone) & (self._above[some] == self._depth[rows, victim][:, None])
        at_row, below = served.nonzero()
        self._above[rows[at_row], below] = above[at_row]
        return victim

    def _place(self, rows: np.ndarray, slots: np.ndarray, new: int, tick: int) -> None:
        depth, first = self._log.depth[new], self._first[new]
        some = self._some(rows)
        over = (self._starts[some] <= first) & (self._ends[some] > first)
        above = (over * self._depth[some]).max(axis=1)
        at_row, below = self._below(some, np.array([new])).nonzero()
        at = rows[at_row]
        self._above[at, below] = np.maximum(self._above[at, below], depth)
        self._slot[rows, new] = slots
        self._record[rows, slots] = new
        self._starts[rows, slots], self._ends[rows, slots] = first, self._last[new]
        self._use[rows, slots] = tick
        self._above[rows, slots] = above
        self._depth[rows, slots] = depth

    def _some(self, rows: np.ndarray) -> np.ndarray | slice:
        """As `rows`, without a copy where they are all."""
        return slice(None) if len(rows) == len(ALPHAS) else rows

    def _below(self, rows: np.ndarray | slice, top: np.ndarray) -> np.ndarray:
        """Whether the record of each slot, [rows, slots], lies strictly below its row's `top`."""
        starts = self._starts[rows]
        return (starts > self._first[top][:, None]) & (starts < self._last[top][:, None])


def _scaled(values: np.ndarray) -> np.ndarray:
    """Min-max scaled to [0, 1] over each row; a row of equals: ones."""
    low, high = values.min(axis=-1, keepdims=True), values.max(axis=-1, keepdims=True)
    return np.where(high > low, (values - low) / np.maximum(high - low, 1e-300), 1.0)


def _intervals(parent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth-first numbers: a record's own, and one past the last below it."""
    children: list[list[int]] = [[] for _ in parent]
    roots: list[int] = []
    for record, above in enumerate(parent.tolist()):
        (children[above] if above >= 0 else roots).append(record)
    first, last, number = np.zeros(len(parent), np.int64), np.zeros(len(parent), np.int64), 0
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        record, done = stack.pop()
        if done:
            last[record] = number
            continue
        first[record] = number
        number += 1
        stack.append((record, True))
        stack += [(child, False) for child in reversed(children[record])]
    return first, last
