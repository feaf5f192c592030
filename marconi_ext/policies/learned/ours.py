"""Our own policy: the learned index with finer classes and a test for change, in FLOPs saved per byte.

Where the traffic isn't what it was (`change.py`), or plain LRU turns out ahead (`guard.py`), the index begins anew from
what was seen of late, and records that weren't used since count little until it has learned.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, ClassVar, overload

import numpy as np

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.learned.drift_test import ChangeTest
from marconi_ext.policies.learned.index import INSIDE, KINDS, LearnedIndex
from marconi_ext.policies.learned.shadow_lru import LruGuard
from marconi_ext.policies.table.checkpoints import CheckpointTable, Kind

# Expected hazards relative to a tail's, by group: what each kind of state is for. A few uses overrule them, and results
# hardly depend on them by factors of two.
_FRESH = (1.0, 0.05, 0.15, 0.5, 1.0)  # tails whose fork is unknown; by the share of its tails that went on
_WENT_ON = (1.0, 1.0, 1.0)  # 1, 2-4, 5+ uses in the chain
_ONE_WAY = (
    0.3,
    0.05,
    0.01,
    0.05,
    1.0,
)  # branch, last token, prompt end, boundary: superseded, if not a branch;
_FORKED_ONCE = (2.0, 1.0, 0.6, 1.0, 0.05)  # input end: not used yet, and then superseded
_FORKED = (2.0, 1.0, 1.0, 1.0, 0.3)
_FORKED_OFTEN = (4.0, 2.0, 1.0, 0.5)  # by rate

# Of the three groups of tails that went on, classes by uses so far: conversations may have a typical length.
_TURNS = (*range(1, 13), 13, 17)
_GROUPS = np.searchsorted([1, 2, 5], _TURNS, side="right") - 1 + len(_FRESH)
_TAILS = len(_FRESH) + len(_TURNS)
_OFTEN = _TAILS + 3 * KINDS  # the classes of those forked often: by the mean requests between two that passed
_RATES = (4, 16, 64)
_INPUTS = (
    _OFTEN + len(_RATES) + 1
)  # the classes of input ends not used yet: by those used before them, as tails

REFRESH_REQUESTS = 32
BEFORE = 1 / 16  # of its index: what a record not used since a change counts; less makes a false alarm dear
LEAD_HITS = 6.0  # by which LRU must be ahead: less happens by chance
SUSPICIOUS_HITS = 1.0
FEW_REQUESTS = 256  # since it began to learn: it refreshes four times as often


class Ours(LearnedIndex):
    """Its classes are finer than `LearnedIndex`'s, and it starts from what each kind of state is for."""

    prior = np.array([*_FRESH, *_WENT_ON, *_ONE_WAY, *_FORKED_ONCE, *_FORKED, *_FORKED_OFTEN, 1.0, *_WENT_ON])
    groups = np.array(
        [
            *range(len(_FRESH)),
            *_GROUPS,
            *range(int(_GROUPS[-1]) + 1, len(prior) - len(_WENT_ON)),
            *(_GROUPS - len(_FRESH) + len(prior) - len(_WENT_ON)),
        ]
    )
    classes = len(groups)
    tail_classes = _TAILS

    def __init__(self, currency: Currency | None = None, half_life_requests: float = 4000.0) -> None:
        super().__init__(currency, half_life_requests)
        self.change = ChangeTest(self.index, FEW_REQUESTS)
        self.guard = LruGuard()
        self.changes = 0
        self._by_kv = ByKv(self)
        self._began = 0  # tick from which on the index has learned
        self._since = 0  # tick from which on the traffic is what it is

    @property
    def by_kv(self) -> ByKv:
        return self._by_kv

    def request(self, table: CheckpointTable, path: list[int], served: int, tick: int) -> None:
        guard = self.guard
        guard.request(table, path, served, tick)
        if guard.lead > LEAD_HITS or self.change.due(tick, guard.lead > SUSPICIOUS_HITS):
            self._fit(len(table.live))
            self._settle(table, tick)
            if self.change.test(tick):
                self._begin_anew(table, tick, self.change.since)
            elif guard.lead > LEAD_HITS:
                self._begin_anew(table, tick, guard.since)
        super().request(table, path, served, tick)
        if served >= 0 and self._known[served]:
            self._account(served, tick)
            self._use[served] = tick  # in demand, if only in place of a deeper one: it is in use again soon

    def _classify(self, table: CheckpointTable, row: int) -> int:
        if table.children[row] or table.kind.item(row) in INSIDE:
            forked = self._forked(table, row)
            if not forked and table.kind.item(row) == Kind.INPUT_END:
                return _INPUTS + bisect_right(_TURNS, self._chain.item(row))
            if forked < 3:
                return _TAILS + KINDS * forked + self._inner_kind(table, row)
            between = (self._tick - table.born.item(row) + 1) / (table.passed.item(row) + 1)
            return _OFTEN + bisect_right(_RATES, between)
        chain = self._chain.item(row)
        return len(_FRESH) + bisect_right(_TURNS, chain) - 1 if chain else self._fresh(table, row)

    def _ways_on(self, table: CheckpointTable, row: int) -> int:
        """The KV below a boundary goes on in one piece for some tokens before it forks: count records too."""
        return max(table.fanout.item(row), table.branches.item(row))

    def _kind(self, table: CheckpointTable, row: int) -> int:
        """A boundary that requests came back to is a branch, though they part from it a few tokens below."""
        if table.kind.item(row) == Kind.BOUNDARY and self._again[row]:
            return int(Kind.BRANCH)
        return super()._kind(table, row)

    def offered(self, table: CheckpointTable, row: int, tick: int) -> None:
        super().offered(table, row, tick)
        self.guard.offered(table, row)

    def forgotten(self, table: CheckpointTable, row: int) -> None:
        self.guard.forgotten(row)
        super().forgotten(table, row)

    def _begin_anew(self, table: CheckpointTable, tick: int, since: int) -> None:
        self.index.begin_from(self.change.lately)
        self.guard.restart()
        self._since, self._began = since, tick
        self.changes += 1
        self._refresh(table, tick)

    def _refresh(self, table: CheckpointTable, tick: int) -> None:
        super()._refresh(table, tick)
        self.change.mark()

    def _indices(self, rows: np.ndarray, tick: int) -> np.ndarray:
        index = super()._indices(rows, tick)
        if self._anew(tick):
            index[self._use.take(rows) < self._since] *= BEFORE
        return index

    def _index(self, row: int, tick: int) -> float:
        index = super()._index(row, tick)
        return index * BEFORE if self._anew(tick) and self._use.item(row) < self._since else index

    def _anew(self, tick: int) -> bool:
        """Whether it hasn't learned much since it began, or began anew."""
        return tick - self._began <= FEW_REQUESTS

    def _refresh_every(self, tick: int) -> int:
        return REFRESH_REQUESTS // 4 if self._anew(tick) else REFRESH_REQUESTS

    def parameters(self) -> dict[str, float]:
        return {**super().parameters(), "changes": float(self.changes)}


class ByKv:
    """Ours where KV is short and slots aren't: by what each token of KV is worth that goes with a leaf's state.

    By the whole worth, long conversations that have ended would crowd out short prompts that come again.
    """

    windowed: ClassVar[bool] = True

    def __init__(self, policy: Ours) -> None:
        self._policy = policy
        self.changed = policy.changed

    def scores(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
        return self._by_token(table, rows, self._policy.scores(table, rows, tick))

    def floors(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
        """As the policy's."""
        return self._by_token(table, rows, self._policy.floors(table, rows, tick))

    def score(self, table: CheckpointTable, row: int, tick: int) -> float:
        """As `scores`, of one row: the same to the bit."""
        return float(self._by_token(table, row, self._policy.score(table, row, tick)))

    @overload
    def _by_token(self, table: CheckpointTable, rows: np.ndarray, scores: np.ndarray) -> np.ndarray: ...
    @overload
    def _by_token(self, table: CheckpointTable, rows: int, scores: float) -> float: ...
    def _by_token(self, table: CheckpointTable, rows: Any, scores: Any) -> Any:
        if self._policy.currency.kv_bytes_per_token:
            return scores  # a byte is a byte, and they count KV already
        return scores / np.maximum(table.depth[rows] - table.above[rows], 1)
