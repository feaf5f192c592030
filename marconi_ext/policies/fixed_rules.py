"""Eviction by fixed rules: each scores all states in one pass, and the lowest score goes.

`scores(table, rows, tick)` gets the rows with a state and returns float64[len(rows)]; +inf: never a victim.
`request` is told of each request's path before its states are offered. Ties go to the lowest row.
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.table.checkpoints import CheckpointTable


class FixedRule:
    """Base of rules without a memory of their own."""

    refuses: ClassVar[bool] = False
    windowed: ClassVar[bool] = False
    max_fanout: int | None = None

    def __init__(self, currency: Currency | None = None) -> None:
        self.currency = currency or Currency()

    @property
    def by_kv(self) -> Self:
        return self

    def scores(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
        raise NotImplementedError

    def request(self, table: CheckpointTable, path: list[int], served: int, tick: int) -> None:
        """`path`: rows on the matched path, shallow first; `served`: the live one that was hit, or -1."""

    def offered(self, table: CheckpointTable, row: int, tick: int) -> None:
        """A state is offered at `row`, new or seen before."""

    def gone(self, table: CheckpointTable, row: int, tick: int) -> None:
        """The state at `row` was evicted or refused; the record stays."""

    def forgotten(self, table: CheckpointTable, row: int) -> None:
        """`row` is about to be freed."""

    def parameters(self) -> dict[str, float]:
        """What tuning or learning ended with."""
        return {}


class Lru(FixedRule):
    """Least recently used state; a hit refreshes the one that served."""

    def scores(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
        return table.last_use[rows].astype(np.float64)


class LruLeaf(FixedRule):
    """SGLang+: least recently used among the states with none below; a request refreshes its whole path."""

    def scores(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
        score = table.last_path[rows].astype(np.float64)
        owners = table.owner[rows]
        inner = np.zeros(table.size, bool)
        inner[owners[owners >= 0]] = True
        score[inner[rows]] += 1e15  # only when no leaf is left
        return score


class SegLen(FixedRule):
    """Tokens to the nearest state above, over age."""

    def scores(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
        return (table.depth[rows] - table.above[rows]) / _age(table, rows, tick)


class FlopAware(FixedRule):
    """The paper's utility, scaled(1/age) + α·scaled(FLOPs saved per byte), over nodes with at most one child."""

    def __init__(
        self, currency: Currency | None = None, alpha: float = 1.0, max_fanout: int | None = None
    ) -> None:
        super().__init__(currency)
        self.alpha = alpha
        self.max_fanout = max_fanout

    def scores(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
        efficiency = self.currency.worth(table.depth[rows], table.above[rows]) / self.currency.cost_bytes(
            table, rows
        )
        return scaled(1.0 / _age(table, rows, tick)) + self.alpha * scaled(efficiency)

    def parameters(self) -> dict[str, float]:
        return {"alpha": self.alpha}


def scaled(values: np.ndarray) -> np.ndarray:
    """Min-max scaled to [0, 1]; all equal: ones."""
    if len(values) == 0:
        return values
    low, high = values.min(), values.max()
    return np.ones_like(values) if low == high else (values - low) / (high - low)


def _age(table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
    return (tick - table.last_use[rows] + 1).astype(np.float64)
