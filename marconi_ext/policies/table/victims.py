"""Finds the lowest score among many states without scoring all of them each time.

Where a policy has cheap lower bounds of its scores, only the states whose bound is lowest are scored. And scores
change slowly: with age, and where something happened. So in pools of more than EXACT_STATES each search looks at a
window of the states, the next window at the next search, and with it at the lowest ones known from before and those
that the policy says have changed. A state whose score has fallen is found at the latest when its window comes round.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from marconi_ext.policies.interfaces import Scores, WindowedScores
from marconi_ext.policies.table.checkpoints import CheckpointTable
from marconi_ext.policies.table.reserves import Reserves

EXACT_STATES = 1024
WINDOW = 128
KEPT = 32
VICTIMS = 4  # at most, found among the same rows
FEW = 8  # states that cost less to score one by one than all in a pass
LOOSE = 16  # searches that score all at once, after one in which bounds told too little


class VictimSearch:
    """A search for one policy. Deterministic."""

    def __init__(self, eviction: Scores, reserves: Reserves | None = None, *, leaves: bool = False) -> None:
        self._reserves = reserves
        self._eviction = cast(WindowedScores, eviction)  # as such it is asked only where it says so
        self._leaves = leaves
        self._windowed = eviction.windowed
        self._loose = 0  # searches for which bounds are taken to tell too little
        self._next = 0  # where in the table's list of states the next window begins
        self._rows = np.empty(0, np.int64)  # looked at last, and their scores' bounds
        self._bounds = np.empty(0)
        self._tick = self._left = 0  # when that was, and how many victims may come of it

    def narrows(self, table: CheckpointTable) -> bool:
        """Whether to look at some states rather than at all."""
        return self._windowed and table.num_live > EXACT_STATES

    def lowest(self, table: CheckpointTable, rows: np.ndarray, tick: int, newcomer: int = -1) -> int:
        """The row with the lowest score out of `rows`, the first of equals, or a `newcomer` with a lower one."""
        if not self._windowed:
            rows = rows if newcomer < 0 else np.append(rows, newcomer)
            return int(rows[int(self._eviction.scores(table, rows, tick).argmin())])
        if self._loose:
            self._loose -= 1
            bounds = self._eviction.scores(table, rows, tick)
            at = int(bounds.argmin())
        else:
            bounds = self._eviction.floors(table, rows, tick)
            at = self._bounded(table, rows, tick, bounds)
        return self._or_newcomer(table, rows.item(at), bounds.item(at), tick, newcomer)

    def lowest_of_some(self, table: CheckpointTable, tick: int, newcomer: int = -1) -> int | None:
        """As `lowest` of all unpinned rows with a state (`leaves`: of leaves only), as far as is known; None: no row.

        States that go make others worth more, if anything: bounds hold for a few victims more at the same tick.
        """
        self._left = self._left - 1 if tick == self._tick else 0
        if self._left > 0:
            there = self._may_go(table, self._rows, newcomer)
            self._rows, self._bounds = self._rows[there], self._bounds[there]
        if self._left <= 0 or not len(self._rows):
            self._rows = self._some(table, newcomer)
            if not len(self._rows):
                return newcomer if newcomer >= 0 else None
            self._bounds = self._eviction.floors(table, self._rows, tick)
            self._tick, self._left = tick, VICTIMS
        at = self._bounded(table, self._rows, tick, self._bounds)
        return self._or_newcomer(table, self._rows.item(at), self._bounds.item(at), tick, newcomer)

    def _or_newcomer(
        self, table: CheckpointTable, lowest: int, score: float, tick: int, newcomer: int
    ) -> int:
        lower = newcomer >= 0 and self._eviction.score(table, newcomer, tick) < score
        return newcomer if lower else lowest

    def _some(self, table: CheckpointTable, newcomer: int) -> np.ndarray:
        """The next window's rows that may go, with those known to be low or to have changed; none where there are
        none at all. A row may come twice."""
        start, held = self._next, table.held[: table.num_live]
        others = [self._known_low(), self._eviction.changed()]
        for _ in range(-(-len(held) // WINDOW) + 1):
            start = start if start < len(held) else 0
            rows = np.concatenate((*others, held[start : start + WINDOW]))
            start += WINDOW
            rows = rows[self._may_go(table, rows, newcomer)]
            if len(rows):
                break
            others = []
        self._next = start
        return rows

    def _may_go(self, table: CheckpointTable, rows: np.ndarray, newcomer: int) -> np.ndarray:
        wanted = table.pins.take(rows) == 0
        wanted &= table.live.take(rows)
        if self._leaves:
            wanted &= table.leaf_tokens.take(rows) > 0
        if self._reserves is not None and self._reserves.active:
            wanted &= self._reserves.may_go(rows, newcomer)
        return wanted

    def _known_low(self) -> np.ndarray:
        """The lowest of the rows looked at last, each once."""
        rows = self._rows
        if len(rows) > KEPT:
            rows = rows[self._bounds.argpartition(KEPT)[:KEPT]]
        rows = np.sort(rows)
        first = np.ones(len(rows), bool)
        np.not_equal(rows[1:], rows[:-1], out=first[1:])
        return rows[first]

    def _bounded(self, table: CheckpointTable, rows: np.ndarray, tick: int, bounds: np.ndarray) -> int:
        """Where in `rows` the lowest score is; `bounds` gets the scores that had to be known."""
        scored: set[int] = set()
        while (at := int(bounds.argmin())) not in scored:
            if len(scored) == FEW:
                self._loose = LOOSE
                bounds[:] = self._eviction.scores(table, rows, tick)
                return int(bounds.argmin())
            scored.add(at)
            bounds[at] = self._eviction.score(table, rows.item(at), tick)
        return at
