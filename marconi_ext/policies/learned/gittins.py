"""The learned policy: keep what is expected to save most per slot-step, by what has been reused so far.

    V(r) = [ w_r·G_c(r)(age_r) + max over ghosts g that r serves of w_g·G_c(g)(age_g) ]
           · [ F(depth_r) - F(above_r) ] / bytes_r

The state with the lowest V goes, and a newcomer lower than all is refused. `reference.py` has the whole equation and
computes it plainly. Here are the records, the events and the vectorised scores; G is in `gittins_index.py`, its hazards
in `hazards.py`, classes in `classes.py`, ghosts in `ghosts.py`, w and LRU's share of the slots in `lru_share.py`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.interfaces import WindowedScores
from marconi_ext.policies.learned.by_kv import ByKv
from marconi_ext.policies.learned.classes import BASIC, FINE, INSIDE, Classes
from marconi_ext.policies.learned.ghosts import Ghosts, block_of
from marconi_ext.policies.learned.gittins_index import GittinsIndex
from marconi_ext.policies.learned.lru_share import BEFORE, LruShare
from marconi_ext.policies.learned.reference import Record
from marconi_ext.policies.table.checkpoints import CheckpointTable, Kind

CHANGED_KEPT = 32
KEPT = 1e30  # added to the score of what LRU's share keeps
HALF_LIFE_REQUESTS = 4000.0
# numpy takes microseconds to compare with a member
_BRANCH, _BOUNDARY, _INPUT_END = map(int, (Kind.BRANCH, Kind.BOUNDARY, Kind.INPUT_END))
_COLUMNS = ("_label", "_use", "_counted", "_chain", "_born", "_went_on", "_again", "_known", "_bare")


@dataclass(frozen=True)
class Variant:
    """classes: what records are told apart by; refresh_requests: how often the index is computed
    follows: it begins anew where the traffic changes, counts a state that serves in a ghost's place as used, takes a
    boundary come back to for a branch, and orders leaves by their worth per token where KV is short
    """

    classes: Classes
    refresh_requests: int
    follows: bool


class Gittins:
    """The policy. Deterministic: integer ticks, no randomness, ties to the lowest row."""

    refuses: ClassVar[bool] = True
    windowed: ClassVar[bool] = True
    max_fanout: int | None = None
    variant: ClassVar[Variant] = Variant(FINE, refresh_requests=32, follows=True)

    def __init__(self, currency: Currency | None = None) -> None:
        self.currency = currency or Currency()
        self.classes = self.variant.classes
        classes = self.classes
        self.index = GittinsIndex(
            len(classes.names), HALF_LIFE_REQUESTS, classes.prior, classes.groups, classes.doubted
        )
        self.lru = LruShare() if self.variant.follows else None
        self._by_kv = ByKv(self, self.currency) if self.variant.follows else self
        self._refreshed = 0
        n = 256
        self._label = np.zeros(n, np.int64)
        self._use = np.zeros(n, np.int64)  # tick of the last use, ghosts' included
        self._counted = np.zeros(n, np.int64)  # exposure is booked up to this tick
        self._chain = np.zeros(n, np.int64)  # uses along the chain that ends here
        self._born = np.zeros(n, np.int64)  # tails born under this fork
        self._went_on = np.zeros(n, np.int64)
        self._again = np.zeros(n, np.int64)  # uses as an inner record
        self._known = np.zeros(n, bool)
        self._bare = np.zeros(n, bool)  # what was held below it has gone: it is its conversation's tail again
        self._tick = 0
        self._from_chain = 0  # chain length that this request's tails inherit
        self.ghosts = Ghosts(self._indices, self._index, self._is_known)
        self._account_from = 0  # row at which the next block begins
        self._changed: deque[int] = deque(maxlen=CHANGED_KEPT)

    @property
    def by_kv(self) -> WindowedScores:
        return self._by_kv

    # --- events ------------------------------------------------------------------------------------------

    def request(self, table: CheckpointTable, path: list[int], served: int, tick: int) -> None:
        self._fit(len(table.live))
        if self.lru is not None and self.lru.request(table, path, served, tick):
            self._settle(table, tick)
            self.index.believe_less(BEFORE)
            self._refresh(table, tick)
        self._from_chain, self._tick = 0, tick
        deepest = next((row for row in reversed(path) if self._known[row]), -1)
        if deepest >= 0:
            self._credit(table, deepest, tick)
            # a conversation that begins at a fork has no uses yet, however often the fork had
            self._from_chain = int(self._chain[deepest]) if self._ways_on(table, deepest) < 2 else 0
            forked_before = served >= 0 and served != deepest and self._ways_on(table, served) > 1
            if forked_before and self._kind(table, deepest) == Kind.BRANCH:
                self._credit(table, served, tick)
        if tick - self._refreshed >= self._refresh_every(tick):
            self._refresh(table, tick)
        self.ghosts.request(table, tick)
        if self.variant.follows and served >= 0 and self._known[served]:
            self._account(served, tick)
            self._use[served] = tick  # in demand, if only in place of a deeper one: it is in use again soon

    def offered(self, table: CheckpointTable, row: int, tick: int) -> None:
        self._fit(len(table.live))
        if self.lru is not None:
            self.lru.offered(table, row)
        if self._known[row]:
            return
        parent = int(table.parent[row])
        self._known[row] = True
        self._use[row] = self._counted[row] = tick
        self._chain[row] = self._from_chain
        self._born[row] = self._went_on[row] = self._again[row] = 0
        self.ghosts.forget(row)
        self._bare[row] = False
        self._label[row] = self._classify(table, row)
        if not table.children[row] and self._chain[row] == 0 and table.kind.item(row) != _INPUT_END:
            fork = self._fork(table, row)
            if fork >= 0:
                self._born[fork] += 1
        while parent >= 0 and not self._known[parent]:  # displaced ones in between were never offered
            parent = int(table.parent[parent])
        if parent >= 0:
            self._bare[parent] = False
            self._relabel(table, parent, tick)

    def forgotten(self, table: CheckpointTable, row: int) -> None:
        if self.lru is not None:
            self.lru.forgotten(row)
        if self._known[row]:
            self._account(row, self._tick)
            self._known[row] = False
        parent = table.parent.item(row)
        alone = parent >= 0 and table.branches.item(parent) == 1  # `row`
        if alone and self._known[parent] and self.variant.follows:
            self._bare[parent] = True
            self._relabel(table, parent, self._tick)

    def _refresh_every(self, tick: int) -> int:
        """Less often once much has been learned since it began, or began anew."""
        anew = self.lru is not None and self.lru.anew(tick)
        return self.variant.refresh_requests // (4 if anew else 1)

    def _credit(self, table: CheckpointTable, row: int, tick: int) -> None:
        if not self._known[row]:
            return
        self._account(row, tick)
        self.index.used(int(self._label[row]), tick - int(self._use[row]))
        if not table.children[row] and self._chain[row] == 0:
            fork = self._fork(table, row)
            if fork >= 0:
                self._went_on[fork] += 1
        self._use[row] = self._counted[row] = tick
        self._chain[row] += 1
        self._again[row] += self._label[row] >= self.classes.tails
        self._label[row] = self._classify(table, row)
        if not table.live[row]:
            self.ghosts.ask(table, row, tick)

    def _account(self, row: int, tick: int) -> None:
        if tick > self._counted[row]:
            use = int(self._use[row])
            self.index.expose_one(int(self._label[row]), int(self._counted[row]) - use, tick - use)
            self._counted[row] = tick

    def _relabel(self, table: CheckpointTable, row: int, tick: int) -> None:
        label = self._classify(table, row)
        if label != self._label[row]:
            self._account(row, tick)
            self._label[row] = label
            self._changed.append(row)

    def changed(self) -> np.ndarray:
        """Rows whose class changed lately: where scores may have fallen at once."""
        return np.fromiter(self._changed, np.int64, len(self._changed))

    def catch_up(self) -> None:
        """Compute what is due now, while nobody waits: the same as when it is asked for."""
        self.index.catch_up()

    def _refresh(self, table: CheckpointTable, tick: int) -> None:
        self._settle(table, tick)
        self.index.refresh(tick - self._refreshed)
        self._refreshed = tick

    def _settle(self, table: CheckpointTable, tick: int) -> None:
        """Tell the index what records lived through."""
        rows, self._account_from = block_of(self._account_from, table.size)
        rows = rows[self._known[rows] & (self._counted[rows] < tick)]
        use = self._use[rows]
        self.index.expose(self._label[rows], self._counted[rows] - use, tick - use)
        self._counted[rows] = tick

    # --- classes -----------------------------------------------------------------------------------------

    def _ways_on(self, table: CheckpointTable, row: int) -> int:
        """Continuations from a record: two or more make it a fork."""
        ways = table.fanout.item(row)
        # the KV below a boundary goes on in one piece for some tokens before it forks: count records too
        return max(ways, table.branches.item(row)) if self.variant.follows else ways

    def _fork(self, table: CheckpointTable, row: int) -> int:
        """The nearest record above that has forked, or -1."""
        row = table.parent.item(row)
        while row >= 0 and self._ways_on(table, row) < 2:
            row = table.parent.item(row)
        return row

    def _kind(self, table: CheckpointTable, row: int) -> int:
        """A boundary from which requests parted is a branch, as is one that they came back to: they part from it a
        few tokens below."""
        kind = table.kind.item(row)
        forked = table.fanout.item(row) > 1 or (self.variant.follows and self._again.item(row) > 0)
        return _BRANCH if kind == _BOUNDARY and forked else kind

    def _classify(self, table: CheckpointTable, row: int) -> int:
        classes, chain = self.classes, self._chain.item(row)
        # one that served again and again lies just above a fork, if not at one
        forks = max(table.fanout.item(row) - 1, self._again.item(row) - 1, 0)
        tail = not table.children[row] and table.kind.item(row) not in INSIDE
        if tail or (self._bare.item(row) and not self._again.item(row)):
            if chain:
                return classes.tail(chain)
            fork = self._fork(table, row)
            return classes.fresh(self._born.item(fork), self._went_on.item(fork)) if fork >= 0 else 0
        kind = self._kind(table, row)
        if classes.input_turns and not forks and kind == _INPUT_END:
            return classes.input_end(chain)
        if classes.rates and forks > classes.forks[-1] + 1:
            return classes.often((self._tick - table.born.item(row) + 1) / (table.passed.item(row) + 1))
        return classes.inner(forks, 4 if kind == _INPUT_END else min(kind, 3))

    # --- scores ------------------------------------------------------------------------------------------

    def scores(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
        self._fit(len(table.live))
        newcomers = (~table.live[rows]).nonzero()[0]
        for row in rows[newcomers].tolist():
            self.ghosts.foresee(table, row, tick)
        total = self._indices(rows, tick) + self.ghosts.demand(table, rows, tick)
        worth = self.currency.worth(table.depth[rows], self._above(table, rows))
        value = total * worth / self.currency.whole_cost_bytes(table, rows)
        if self.lru is not None and (kept := self.lru.kept):
            value += [KEPT if row in kept else 0.0 for row in rows.tolist()]  # numpy's isin would sort them
        return value

    def floors(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
        """Lower bounds of the scores of states, for less: without ghosts below and states above that will go."""
        self._fit(len(table.live))
        worth = self.currency.worth(table.depth.take(rows), table.above.take(rows))
        return self._indices(rows, tick) * worth / self.currency.whole_cost_bytes(table, rows)

    def score(self, table: CheckpointTable, row: int, tick: int) -> float:
        """As `scores`, of one row: the same to the bit."""
        if not table.live[row]:
            self._fit(len(table.live))
            self.ghosts.foresee(table, row, tick)
        total = self._index(row, tick) + self.ghosts.demand_of(table, row, tick)
        worth = self.currency.worth(table.depth.item(row), self._above_one(table, row))
        value = float(total * worth / self.currency.whole_cost_bytes(table, row))
        return value + KEPT if self.lru is not None and row in self.lru.kept else value

    def _above(self, table: CheckpointTable, rows: np.ndarray) -> np.ndarray:
        """Depth of the nearest live state above that will last: a superseded one that only a running request
        holds gives its slot to the next newcomer, so what follows it isn't worth less for it. A branch lasts, and
        so does a boundary that requests came back to."""
        owners, above = table.owner[rows], table.above[rows]
        passing = ((table.pins[owners] > 0) & (owners >= 0)).nonzero()[0]
        if len(passing):  # few states are held at a time
            held = owners[passing]
            kinds = table.kind[held]
            lasts = (kinds == _BRANCH) | ((kinds == _BOUNDARY) & (self._again[held] > 0))
            passes = (table.fanout[held] < 2) & ~lasts
            above[passing[passes]] = table.above[held[passes]]
        return above

    def _above_one(self, table: CheckpointTable, row: int) -> int:
        owner = table.owner.item(row)
        if owner >= 0 and table.pins.item(owner) > 0 and table.fanout.item(owner) < 2:
            kind = table.kind.item(owner)
            if kind != _BRANCH and not (kind == _BOUNDARY and self._again.item(owner) > 0):
                return table.above.item(owner)
        return table.above.item(row)

    def _indices(self, rows: np.ndarray, tick: int) -> np.ndarray:
        uses = self._use.take(rows)
        index = self.index.at(self._label.take(rows), tick - uses)
        if self.lru is not None and self.lru.anew(tick):
            index[uses < self.lru.unused_since] *= BEFORE
        return index

    def _is_known(self) -> np.ndarray:
        """By row: whether it is a record that the policy was told of."""
        return self._known

    def _index(self, row: int, tick: int) -> float:
        use = self._use.item(row)
        index = self.index.at_one(self._label.item(row), tick - use)
        return index * BEFORE if self._before(use, tick) else index

    def _before(self, use: int, tick: int) -> bool:
        """Whether a record used at `use` last is of before a change of traffic that was lately."""
        return self.lru is not None and use < self.lru.unused_since and self.lru.anew(tick)

    def gone(self, table: CheckpointTable, row: int, tick: int) -> None:
        """The state at `row` was evicted or refused: what it served falls to the state above."""
        self.ghosts.gone(table, row, tick)

    def class_name(self, row: int) -> str:
        """The class that a known row is in."""
        return self.classes.names[self._label.item(row)]

    def facts(self, table: CheckpointTable, row: int, tick: int) -> Record:
        """What the equation takes of a known row."""
        use, depth = self._use.item(row), table.depth.item(row)
        return Record(
            label=self._label.item(row),
            age=tick - use,
            depth=depth,
            above=self._above_one(table, row),
            before=self._before(use, tick),
            tail_tokens=depth - table.above.item(row) if table.leaf_tokens[row] else 0,
            serves=None if table.live[row] else table.owner.item(row),
        )

    def parameters(self) -> dict[str, float]:
        changes = {} if self.lru is None else {"changes": float(self.lru.changes)}
        return {"uses_counted": float(self.index.uses.sum()), **changes}

    def _fit(self, rows: int) -> None:
        if rows > len(self._known):
            for name in _COLUMNS:
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros(rows - len(old), old.dtype)]))
            self.ghosts.fit(rows)


class GittinsBasic(Gittins):
    """With fewer classes, of which nothing is expected before it is seen, and no thought of change."""

    variant = Variant(BASIC, refresh_requests=64, follows=False)
