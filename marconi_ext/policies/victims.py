"""Finds the lowest score among many states without scoring all of them each time.

Where a policy has cheap lower bounds of its scores, only the states whose bound is lowest are scored. And scores
change slowly: with age, and where something happened. So in pools of more than EXACT_STATES each search looks at a
window of the states, the next window at the next search, and with it at the lowest ones known from before and those
that the policy says have changed. A state whose score has fallen is found at the latest when its window comes round.
"""

from __future__ import annotations

import numpy as np

from marconi_ext.policies.checkpoints import CheckpointBook
from marconi_ext.policies.eviction import Eviction

EXACT_STATES = 1024
WINDOW = 128
KEPT = 32
FEW = 8  # states that cost less to score one by one than all in a pass


class VictimSearch:
    """A search for one policy. Deterministic. A policy that sets `windowed` has `floors`, `score` and `changed` as in
    `learned.py`; one that scales over all candidates can't."""

    def __init__(self, eviction: Eviction, *, leaves: bool = False) -> None:
        self._eviction = eviction
        self._leaves = leaves
        self._windowed = getattr(eviction, "windowed", False)
        self._next = 0  # where in the book's list of states the next window begins
        self._lowest = np.empty(0, np.int64)
        self._keeping = False  # the rows to search come from `some`

    def narrows(self, book: CheckpointBook) -> bool:
        """Whether to look at `some` states rather than at all."""
        return self._windowed and book.num_live > EXACT_STATES

    def some(self, book: CheckpointBook) -> np.ndarray:
        """Unpinned rows with a state (with `leaves` of leaves only) to look at this time; none where there are none.
        A row may come twice."""
        start, held = self._next, book.held[: book.num_live]
        others = [self._lowest, self._eviction.changed()]
        for _ in range(-(-len(held) // WINDOW) + 1):
            start = start if start < len(held) else 0
            rows = np.concatenate((*others, held[start : start + WINDOW]))
            start += WINDOW
            wanted = book.live.take(rows)
            wanted &= book.pins.take(rows) == 0
            if self._leaves:
                wanted &= book.leaf_tokens.take(rows) > 0
            rows = rows[wanted]
            if len(rows):
                break
            others = []
        self._next, self._keeping = start, True
        return rows

    def lowest(self, book: CheckpointBook, rows: np.ndarray, tick: int, newcomer: int = -1) -> int:
        """The row with the lowest score out of `rows`, the first of equals, or a `newcomer` with a lower one."""
        if not self._windowed:
            rows = rows if newcomer < 0 else np.append(rows, newcomer)
            return int(rows[int(self._eviction.scores(book, rows, tick).argmin())])
        bounds = self._eviction.floors(book, rows, tick)
        at = self._bounded(book, rows, tick, bounds)
        found = rows.item(at)
        if newcomer >= 0 and self._eviction.score(book, newcomer, tick) < bounds[at]:
            found = newcomer
        if self._keeping:
            if len(rows) > KEPT:
                rows = rows[bounds.argpartition(KEPT)[:KEPT]]
            rows.sort()
            first = np.ones(len(rows), bool)
            np.not_equal(rows[1:], rows[:-1], out=first[1:])
            self._lowest, self._keeping = rows[first], False
        return found

    def _bounded(self, book: CheckpointBook, rows: np.ndarray, tick: int, bounds: np.ndarray) -> int:
        """Where in `rows` the lowest score is; `bounds` gets the scores that had to be known."""
        scored: set[int] = set()
        while (at := int(bounds.argmin())) not in scored:
            if len(scored) == FEW:
                bounds[:] = self._eviction.scores(book, rows, tick)
                return int(bounds.argmin())
            scored.add(at)
            bounds[at] = self._eviction.score(book, rows.item(at), tick)
        return at
