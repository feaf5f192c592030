"""What states are asked for in place of others: of each, the most valuable ghost that it serves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from marconi_ext.policies.table.checkpoints import CheckpointTable

DEMAND_REQUESTS = 8  # ghosts' demand is recounted this often, and kept up by events in between
MAX_GHOSTS_SEEN = 64
BLOCK_ROWS = 4096  # rows that one recount or one refresh goes through: all of them in most pools


class Ghosts:
    """indices, index: of rows, and of one row, at a tick; known: by row, whether it is a record at all"""

    def __init__(
        self,
        indices: Callable[[np.ndarray, int], np.ndarray],
        index: Callable[[int, int], float],
        known: Callable[[], np.ndarray],
    ) -> None:
        self._indices, self._index, self._known = indices, index, known
        self._best = np.full(256, -1, np.int64)  # the best ghost that a row serves, as far as known
        self._counted = -DEMAND_REQUESTS  # tick
        self._next = 0  # row at which the next block begins

    def request(self, table: CheckpointTable, tick: int) -> None:
        """A request has been booked."""
        if tick - self._counted >= DEMAND_REQUESTS:
            self.recount(table, tick)

    def demand(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
        """Index of the best ghost known below each row; 0 where it is gone, live again or served by another."""
        demand, best = np.zeros(len(rows)), self._best[rows]
        having = (best >= 0).nonzero()[0]
        best, rows = best[having], rows[having]
        valid = (table.owner[best] == rows) | ~table.live[rows]
        valid &= self._known()[best] & ~table.live[best]
        demand[having] = self._indices(best, tick) * valid
        return demand

    def demand_of(self, table: CheckpointTable, row: int, tick: int) -> float:
        """As `demand`, of one row."""
        best = self._best.item(row)
        if best < 0 or not self._known()[best] or table.live[best]:
            return 0.0
        serves = table.owner.item(best) == row or not table.live[row]
        return self._index(best, tick) if serves else 0.0

    def recount(self, table: CheckpointTable, tick: int) -> None:
        """Look whether other ghosts are better now than those followed, which have aged."""
        rows, self._next = block_of(self._next, table.size)
        owners = table.owner[rows]
        asking = (self._known()[rows] & ~table.live[rows] & (owners >= 0)).nonzero()[0]
        ghosts, owners = rows[asking], owners[asking]
        index = self._indices(ghosts, tick)
        demand, asked = np.zeros(table.size), np.zeros(table.size, bool)
        asked[owners] = True  # many ghosts have the same
        demand[asked] = self.demand(table, asked.nonzero()[0], tick)
        better = (index > demand[owners]).nonzero()[0]
        better = better[np.argsort(index[better], kind="stable")]
        self._best[owners[better]] = ghosts[better]  # the last one written is the best
        self._counted = tick

    def ask(self, table: CheckpointTable, ghost: int, tick: int) -> None:
        """`ghost` would have been of use: the live state above it may have to serve in its place."""
        owner = table.owner.item(ghost)
        if owner < 0 or not self._known()[ghost] or table.live[ghost]:
            return
        if self._index(ghost, tick) > self.demand_of(table, owner, tick):
            self._best[owner] = ghost

    def gone(self, table: CheckpointTable, row: int, tick: int) -> None:
        """The state at `row` was evicted or refused: what it served falls to the state above."""
        self.ask(table, row, tick)
        if self._best[row] >= 0:
            self.ask(table, self._best.item(row), tick)

    def foresee(self, table: CheckpointTable, row: int, tick: int) -> None:
        """Find what a newcomer would serve if it were held."""
        if not table.children[row]:
            self._best[row] = -1
            return
        below = np.array(self._below(table, row), np.int64)
        self._best[row] = below[self._indices(below, tick).argmax()] if len(below) else -1

    def forget(self, row: int) -> None:
        """`row` is another record from now on."""
        self._best[row] = -1

    def fit(self, rows: int) -> None:
        """Make room for so many rows."""
        self._best = np.concatenate([self._best, np.full(rows - len(self._best), -1, np.int64)])

    def _below(self, table: CheckpointTable, row: int) -> list[int]:
        """Ghosts that a state at `row` would serve; of a wide subtree the most recent ones."""
        found: list[int] = []
        stack = table.children[row][-MAX_GHOSTS_SEEN:]
        while stack and len(found) < MAX_GHOSTS_SEEN:
            child = stack.pop()
            if not table.live[child]:
                if self._known()[child]:
                    found.append(child)
                stack += table.children[child][-MAX_GHOSTS_SEEN:]
        return found


def block_of(start: int, rows: int) -> tuple[np.ndarray, int]:
    """The next BLOCK_ROWS rows from `start`, and where to go on; all rows where there are no more."""
    if rows <= BLOCK_ROWS:
        return np.arange(rows), 0
    stop = min(start + BLOCK_ROWS, rows)
    return np.arange(start, stop), stop if stop < rows else 0
