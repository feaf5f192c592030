"""Simple rules that know a superseded state, as baselines: what a few lines reach with no classes and nothing learned.

A state is *superseded* where a deeper one is held and its prefix goes on in one way only: its conversation has passed
it. Such states go first, in the order of the rule; then all others in that order.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.fixed_rules import FixedRule
from marconi_ext.policies.table.checkpoints import CheckpointTable, Kind

_INSIDE = (Kind.BRANCH, Kind.BOUNDARY)
_USES_KEPT = 64  # over which the mean age at use is taken


class SupersededFirst(FixedRule):
    """A rule's base: `rates` says how often each state is expected to be used; its worth per byte is known."""

    def scores(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
        worth = self.currency.worth(table.depth[rows], table.above[rows])
        score = self.rates(table, rows, tick) * worth / self.currency.whole_cost_bytes(table, rows)
        passed = superseded(table, rows)
        score[passed] = -1.0 / np.maximum(score[passed], 1e-300)  # below all others, in the same order
        return score

    def rates(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
        """Uses expected in a request, up to a factor: float64[len(rows)], > 0."""
        raise NotImplementedError


class SupersededSegLen(SupersededFirst):
    """Tokens to the nearest state above, over age: rates are 1 / age."""

    def rates(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
        return 1.0 / (tick - table.last_use[rows] + 1)


class Hyperbolic(SupersededFirst):
    """Uses over the time since it was first offered (Blankstein, Sen and Freedman, ATC 2017)."""

    def rates(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
        return (table.uses[rows] + 1) / (tick - table.born[rows] + 1)


class Gdsf(SupersededFirst):
    """GreedyDual-Size-Frequency (Cherkasova 1998): uses × worth per byte, on top of what the last victim had when a
    state was last used. That takes the place of its age."""

    def __init__(self, currency: Currency | None = None) -> None:
        super().__init__(currency)
        self._level = 0.0  # the last victim's
        self._base = np.zeros(0)  # the level at each row's last use

    def request(self, table: CheckpointTable, path: list[int], served: int, tick: int) -> None:
        if served >= 0:
            self._at(table)[served] = self._level

    def offered(self, table: CheckpointTable, row: int, tick: int) -> None:
        self._at(table)[row] = self._level

    def gone(self, table: CheckpointTable, row: int, tick: int) -> None:
        if not superseded(table, np.array([row]))[0]:
            self._level = max(self._level, float(self._values(table, np.array([row]))[0]))

    def scores(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
        score = self._values(table, rows)
        passed = superseded(table, rows)
        score[passed] = -1.0 / np.maximum(score[passed], 1e-300)
        return score

    def _values(self, table: CheckpointTable, rows: np.ndarray) -> np.ndarray:
        worth = self.currency.worth(table.depth[rows], table.above[rows])
        worth = worth / self.currency.whole_cost_bytes(table, rows)
        return self._at(table)[rows] + (table.uses[rows] + 1) * worth

    def _at(self, table: CheckpointTable) -> np.ndarray:
        if len(self._base) < len(table.live):
            self._base = np.concatenate([self._base, np.zeros(len(table.live) - len(self._base))])
        return self._base


class FortyLines(SupersededFirst):
    """Two rates, and newcomers may be refused: 1 / (age + k) for tails, (uses + 1) / (life + k) for forks and states
    placed inside prompts; k is the mean age at use of late, in requests."""

    refuses: ClassVar[bool] = True

    def __init__(self, currency: Currency | None = None) -> None:
        super().__init__(currency)
        self._mean_age = 1.0

    def request(self, table: CheckpointTable, path: list[int], served: int, tick: int) -> None:
        if served >= 0:
            age = float(tick - table.last_use[served])
            self._mean_age += (age - self._mean_age) / _USES_KEPT

    def rates(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
        tail = 1.0 / (tick - table.last_use[rows] + self._mean_age)
        inner = (table.uses[rows] + 1) / (tick - table.born[rows] + self._mean_age)
        forks = (table.fanout[rows] > 1) | np.isin(table.kind[rows], _INSIDE)
        return np.where(forks, inner, tail)

    def parameters(self) -> dict[str, float]:
        return {"mean_age": self._mean_age}


def superseded(table: CheckpointTable, rows: np.ndarray) -> np.ndarray:
    """Whether a deeper state is held below each row, and its prefix goes on in one way only: bool[len(rows)]."""
    owners = table.owner[table.live_rows()]
    above_a_state = np.zeros(max(table.size, 1), bool)
    above_a_state[owners[owners >= 0]] = True
    return above_a_state[rows] & (table.fanout[rows] < 2)
