"""An eviction that knows the law of each session and not its draws: what can be foreseen, and what can't.

From the whole trace it knows how many sessions go on after so many turns, each session's mean gap between two turns,
and how often new sessions begin with a prefix. It doesn't know when the next turn comes, nor whether this session goes
on. What one that has waited `a` requests is expected to do is Bayes' rule over gaps without memory:

    hazard(a) = p(a) / gap,   p(a) = q·e^(-a/gap) / (q·e^(-a/gap) + 1 - q)

with q the share of the sessions that go on after so many turns.

A state is worth the hazards of the sessions that it, and no deeper state, would serve, times what that saves. A
session is expected to go on where its last sequence ended: prompts that are asked again, or cut at the front, are not
foreseen. Like the clairvoyant it is greedy, and neither optimal nor a bound.
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.table.checkpoints import CheckpointTable
from marconi_ext.simulator.clairvoyant import Future
from marconi_ext.traces import Request

FORGOTTEN_GAPS = 30.0  # a session that has waited so many of its gaps isn't counted any more


class Law:
    """Ticks are request numbers from 1: request i of the trace is tick i + 1."""

    refuses: ClassVar[bool] = True
    windowed: ClassVar[bool] = False
    max_fanout: int | None = None

    def __init__(self, currency: Currency, future: Future, requests: list[Request]) -> None:
        self.currency = currency
        self._future = future
        self._session = [request.session_id for request in requests]
        at: dict[str, list[int]] = {}
        for i, session in enumerate(self._session):
            at.setdefault(session, []).append(i)
        self._first = np.zeros(len(requests), bool)
        self._first[[turns[0] for turns in at.values()]] = True
        gaps = np.concatenate([np.diff(turns) for turns in at.values()])
        usual = float(gaps.mean()) if len(gaps) else 1.0
        self._gap = {s: float(np.diff(turns).mean()) if len(turns) > 1 else usual for s, turns in at.items()}
        lengths = np.array([len(turns) for turns in at.values()])
        reached = (lengths[:, None] > np.arange(lengths.max() + 1)).sum(0)  # sessions with more than n turns
        self._goes_on = (
            reached[1:] / reached[:-1]
        )  # [n]: of those with more than n, that have more than n + 1
        self._turns: dict[str, int] = {}
        self._last: dict[str, tuple[int, int]] = {}  # session -> deepest row of its last sequence, tick
        self._begins: dict[int, float] = {}  # row -> new sessions a request that begin with its prefix

    @property
    def by_kv(self) -> Self:
        return self

    def request(self, table: CheckpointTable, path: list[int], served: int, tick: int) -> None:
        session = self._session[tick - 1]
        self._turns[session] = self._turns.get(session, 0) + 1
        self._last[session] = (path[-1] if path else -1, tick)

    def offered(self, table: CheckpointTable, row: int, tick: int) -> None:
        session = self._session[tick - 1]
        deepest = self._last[session][0]
        if deepest < 0 or table.depth.item(row) > table.depth.item(deepest):
            self._last[session] = (row, tick)
        if row not in self._begins:
            uses = self._future.uses(tick - 1, table.depth.item(row))
            self._begins[row] = float(self._first[uses].sum()) / len(self._first)

    def gone(self, table: CheckpointTable, row: int, tick: int) -> None:
        pass

    def forgotten(self, table: CheckpointTable, row: int) -> None:
        self._begins.pop(row, None)
        above = table.parent.item(row)
        for session, (deepest, tick) in self._last.items():
            if deepest == row:
                self._last[session] = (above, tick)

    def scores(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
        asked = {row: self._begins[row] for row in rows.tolist()}
        for row in asked:  # who begins with a deeper state's prefix is served there
            owner = self._serving(table, table.parent.item(row), asked)
            if owner >= 0:
                asked[owner] -= self._begins[row]
        for session, hazard in self.hazards(tick).items():
            row = self._serving(table, self._last[session][0], asked)
            if row >= 0:
                asked[row] += hazard
        uses = np.array([max(asked[row], 0.0) for row in rows.tolist()])
        worth = self.currency.worth(table.depth[rows], table.above[rows])
        return uses * worth / self.currency.cost_bytes(table, rows)

    def _serving(self, table: CheckpointTable, row: int, asked: dict[int, float]) -> int:
        """The row that would serve what was at `row` last: the first at or above it that is live or asked for."""
        while row >= 0 and row not in asked:
            if table.live[row]:
                return -1  # it may not go
            row = table.parent.item(row)
        return row

    def hazards(self, tick: int) -> dict[str, float]:
        """Uses a request that are expected of each session; those that waited too long are dropped for good."""
        found = {}
        for session, (_, last) in list(self._last.items()):
            gap = max(self._gap[session], 1.0)
            waited = (tick - last) / gap
            if waited > FORGOTTEN_GAPS:
                del self._last[session]
                continue
            goes_on = float(self._goes_on[self._turns[session] - 1])
            waits = goes_on * float(np.exp(-waited))
            found[session] = waits / (waits + 1 - goes_on) / gap if waits else 0.0
        return found

    def parameters(self) -> dict[str, float]:
        return {}
