"""Which α would have saved most? All of them are replayed at once over a log of small integers.

The replay knows no tokens and no trees: a record is a position that was offered, with its depth and the record
above it; a request is the records that it went through and those that it offered. Each α has a pool of as many
states as the cache held, one row of a matrix, so that a step for all α is one pass over [alphas, slots].
`tune_alpha` is a pure function of a picklable log: it may run in another process, and any process gets the same α.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from marconi_ext.policies.eviction import Currency

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
    are an interval."""

    def __init__(self, log: TuningLog) -> None:
        self._log = log
        self._first, self._last = _intervals(log.parent)
        n = len(ALPHAS)
        self._slot = np.full((n, len(log.depth)), -1, np.int64)  # [alpha, record] -> slot
        self._record = np.zeros((n, log.slots), np.int64)
        self._use = np.zeros((n, log.slots), np.int64)
        self._above = np.zeros((n, log.slots), np.int64)  # depth of the nearest live record above
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
        target[full] = self._evict(rows[full], tick)
        self._held[rows] = np.minimum(self._held[rows] + 1, self._log.slots)
        self._place(rows, target, record, tick)

    def _evict(self, rows: np.ndarray, tick: int) -> np.ndarray:
        """Free the slot with the lowest utility in each full row; returns the slots."""
        if len(rows) == 0:
            return rows
        depth, record, above = self._log.depth, self._record[rows], self._above[rows]
        free = np.ones(record.shape, bool)  # states that no running request holds
        pinned = ((self._pinned[rows] >= 0) & (self._log.slots > 1)).nonzero()[0]
        free[pinned, self._pinned[rows[pinned]]] = False
        scores = np.empty((2, *record.shape))
        scores[0] = 1.0 / (tick - self._use[rows] + 1)
        scores[1] = self._log.currency.worth(depth[record], above)
        recency, efficiency = _scaled(scores, free)
        victim = np.where(free, recency + ALPHAS[rows, None] * efficiency, np.inf).argmin(axis=1)
        at = np.arange(len(rows))
        gone = record[at, victim]
        self._slot[rows, gone] = -1
        at_row, below = self._inside(record, gone, above == depth[gone][:, None]).nonzero()
        self._above[rows[at_row], below] = above[at_row, victim[at_row]]
        return victim

    def _place(self, rows: np.ndarray, slots: np.ndarray, new: int, tick: int) -> None:
        depth, record = self._log.depth, self._record[rows]
        used = np.arange(self._log.slots) < self._held[rows, None]
        used[np.arange(len(rows)), slots] = False
        over = used & (self._first[record] <= self._first[new]) & (self._first[new] < self._last[record])
        above = np.where(over, depth[record], 0).max(axis=1)
        at_row, below = self._inside(record, np.array([new]), used).nonzero()
        self._above[rows[at_row], below] = np.maximum(self._above[rows[at_row], below], depth[new])
        self._record[rows, slots] = new
        self._use[rows, slots] = tick
        self._above[rows, slots] = above
        self._slot[rows, new] = slots

    def _inside(self, record: np.ndarray, top: np.ndarray, where: np.ndarray) -> np.ndarray:
        """Whether each record [rows, slots], `where` asked for, lies strictly below its row's `top`."""
        first = self._first[record]
        return where & (first > self._first[top][:, None]) & (first < self._last[top][:, None])


def _scaled(values: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Min-max scaled to [0, 1] over the free ones of each row; a row of equals: ones."""
    low = values.min(axis=-1, keepdims=True, initial=np.inf, where=free)
    high = values.max(axis=-1, keepdims=True, initial=-np.inf, where=free)
    return np.where(high > low, (values - low) / np.maximum(high - low, 1e-300), 1.0)


def _intervals(parent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth-first numbers: a record's own, and one past the last below it."""
    children: list[list[int]] = [[] for _ in parent]
    roots = []
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
