"""Finds the lowest score among many states without scoring all of them each time.

Scores change slowly: with age, and where something happened. So each search scores a window of the states, the next
window at the next search, and with it the lowest ones known from before and those that the policy says have
changed. Up to EXACT_STATES all are scored; beyond, a state whose score has fallen is found at the latest when its
window comes round.
"""

from __future__ import annotations

import numpy as np

from marconi_ext.policies.checkpoints import CheckpointBook
from marconi_ext.policies.eviction import Eviction

EXACT_STATES = 1024
WINDOW = 256
KEPT = 64


class VictimSearch:
    """A search for one policy. Deterministic. Policies that scale over all candidates don't set `windowed`."""

    def __init__(self, eviction: Eviction) -> None:
        self._eviction = eviction
        self._windowed = getattr(eviction, "windowed", False)
        self._next = 0  # row at which the next window begins
        self._lowest = np.empty(0, np.int64)

    def lowest(self, book: CheckpointBook, rows: np.ndarray, tick: int, newcomer: int = -1) -> int:
        """The row with the lowest score out of `rows` (ascending, not empty unless a newcomer is given)."""
        if self._windowed and len(rows) > EXACT_STATES:
            rows = self._narrowed(rows)
        if newcomer >= 0:
            rows = np.append(rows, newcomer)
        scores = self._eviction.scores(book, rows, tick)
        if self._windowed and len(rows) > KEPT:
            self._lowest = rows[np.argpartition(scores, KEPT)[:KEPT]]
        return int(rows[int(scores.argmin())])

    def _narrowed(self, rows: np.ndarray) -> np.ndarray:
        start = int(rows.searchsorted(self._next)) % len(rows)
        window = rows[start : start + WINDOW]
        self._next = int(window[-1]) + 1 if start + WINDOW < len(rows) else 0
        others = np.concatenate([self._lowest, self._eviction.changed()])
        others.sort()
        at = np.minimum(rows.searchsorted(others), len(rows) - 1)
        wanted = rows[at] == others
        wanted[1:] &= others[1:] != others[:-1]
        wanted &= (others < window[0]) | (others > window[-1])
        others = others[wanted]
        below = int(others.searchsorted(window[0]))
        return np.concatenate([others[:below], window, others[below:]])
