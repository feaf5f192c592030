"""Our own policy: the learned index with a guard, in FLOPs saved per byte.

The guard keeps a shadow of what plain LRU would hold (branches and last tokens only, as the paper admits them)
and compares hits on the same requests. Where LRU was ahead lately, states that the shadow holds go last, so the
cache turns into LRU's until the index is ahead again. It costs a few dictionary operations a request.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from marconi_ext.policies.checkpoints import CheckpointBook, Kind
from marconi_ext.policies.eviction import Currency
from marconi_ext.policies.learned import REFRESH_REQUESTS, LearnedIndex

# Expected hazards relative to a tail's, by class as in `learned.py`: what each kind of state is for. A few uses
# overrule them, and results hardly depend on them by factors of two.
_TAILS = (
    1.0,
    0.05,
    0.15,
    0.5,
    1.0,
    1.0,
    1.0,
    1.0,
)  # fork unknown; share that went on; 1, 2-4, 5+ uses in the chain
_ONE_WAY = (0.3, 0.05, 0.01, 0.05)  # branch, last token, prompt end, boundary: superseded, if not a branch
_FORKED_ONCE = (2.0, 1.0, 0.6, 1.0)
_FORKED = (2.0, 1.0, 1.0, 1.0)
_FORKED_OFTEN = (4.0, 2.0, 2.0, 2.0)

_SHADOWED = (Kind.BRANCH, Kind.LAST_TOKEN)


class Ours(LearnedIndex):
    """`guarded`: LRU's order is in force."""

    prior = np.array([*_TAILS, *_ONE_WAY, *_FORKED_ONCE, *_FORKED, *_FORKED_OFTEN])
    HALF_LIFE_REQUESTS = 200
    MARGIN = 0.01  # of the tokens hit lately
    PRIOR_TOKENS = 50_000.0  # so that the first few requests decide nothing
    GUARD_REQUESTS = 32  # then the index is given another chance

    def __init__(self, currency: Currency | None = None, half_life_requests: float = 4000.0) -> None:
        super().__init__(currency, half_life_requests)
        self.guarded = False
        self.guarded_requests = 0
        self._shadow: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._lead = 0.0  # tokens by which LRU's hits were ahead lately, decayed
        self._seen = 0.0  # tokens that either hit, decayed
        self._guard_until = 0

    def request(self, book: CheckpointBook, path: list[int], served: int, tick: int) -> None:
        shadow = next((row for row in reversed(path) if row in self._shadow), -1)
        ours, theirs = (float(book.depth[row]) if row >= 0 else 0.0 for row in (served, shadow))
        decay = 0.5 ** (1 / self.HALF_LIFE_REQUESTS)
        self._lead = self._lead * decay + theirs - ours
        self._seen = self._seen * decay + max(theirs, ours)
        if not self.guarded and self._lead > self.MARGIN * (self._seen + self.PRIOR_TOKENS):
            self._guard_until = tick + self.GUARD_REQUESTS
            self._lead = 0.0
        self.guarded = tick < self._guard_until
        self.guarded_requests += self.guarded
        if shadow >= 0:
            self._shadow.move_to_end(shadow)
        super().request(book, path, served, tick)
        if served >= 0 and self._known[served]:
            self._account(served, tick)
            self._use[served] = tick  # in demand, if only in place of a deeper one: it is in use again soon

    def _ways_on(self, book: CheckpointBook, row: int) -> int:
        """The KV below a boundary goes on in one piece for some tokens before it forks: count records too."""
        return max(book.fanout.item(row), book.branches.item(row))

    def _kind(self, book: CheckpointBook, row: int) -> int:
        """A boundary that requests came back to is a branch, though they part from it a few tokens below."""
        if book.kind.item(row) == Kind.BOUNDARY and self._again[row]:
            return int(Kind.BRANCH)
        return super()._kind(book, row)

    def offered(self, book: CheckpointBook, row: int, tick: int) -> None:
        super().offered(book, row, tick)
        if book.kind.item(row) in _SHADOWED:
            self._shadow[row] = None
            self._shadow.move_to_end(row)
            while len(self._shadow) > max(book.num_live, 1):
                self._shadow.popitem(last=False)

    def forgotten(self, book: CheckpointBook, row: int) -> None:
        self._shadow.pop(row, None)
        super().forgotten(book, row)

    def scores(self, book: CheckpointBook, rows: np.ndarray, tick: int) -> np.ndarray:
        score = super().scores(book, rows, tick)
        if self.guarded:
            held = np.fromiter((row in self._shadow for row in rows.tolist()), bool, len(rows))
            score[held] = (score[held] + 1e-15) * 1e30  # above all others, in their own order
        return score

    def _refresh_every(self, tick: int) -> int:
        return REFRESH_REQUESTS if tick > 4 * REFRESH_REQUESTS else 8

    def parameters(self) -> dict[str, float]:
        return {**super().parameters(), "guarded_requests": float(self.guarded_requests)}
