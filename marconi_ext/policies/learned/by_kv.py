"""What leaves are worth where KV is short and slots aren't."""

from __future__ import annotations

from typing import Any, ClassVar, overload

import numpy as np

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.interfaces import WindowedScores
from marconi_ext.policies.table.checkpoints import CheckpointTable


class ByKv:
    """A policy's scores by what each token of KV is worth that goes with a leaf's state.

    By the whole worth, long conversations that have ended would crowd out short prompts that come again.
    """

    windowed: ClassVar[bool] = True

    def __init__(self, policy: WindowedScores, currency: Currency) -> None:
        self._policy = policy
        self._currency = currency
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
        if self._currency.kv_bytes_per_token:
            return scores  # a byte is a byte, and they count KV already
        return scores / np.maximum(table.depth[rows] - table.above[rows], 1)
