"""What a hit is worth, and what a state costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from marconi_ext.policies.table.checkpoints import CheckpointTable


@dataclass(frozen=True, slots=True)
class Currency:
    """What a hit of L tokens is worth, linear·L + quadratic·L², and what a state and a KV token cost (bytes)."""

    linear: float = 1.0
    quadratic: float = 0.0
    state_bytes: float = 1.0
    kv_bytes_per_token: float = 0.0

    @overload
    def worth(self, depth: np.ndarray, above: np.ndarray) -> np.ndarray: ...
    @overload
    def worth(self, depth: int, above: int) -> float: ...
    def worth(self, depth: Any, above: Any) -> Any:
        """Worth of having the state at `depth` where the nearest one above is at `above`."""
        if self.quadratic == 0:
            return self.linear * (depth - above)
        depth, above = depth * 1.0, above * 1.0  # of one row too, where Python's numbers cost least
        return self.linear * (depth - above) + self.quadratic * (depth * depth - above * above)

    def cost_bytes(self, table: CheckpointTable, rows: np.ndarray) -> np.ndarray:
        """Bytes that evicting each row frees."""
        return self.state_bytes + self.kv_bytes_per_token * table.leaf_tokens[rows]

    def whole_cost_bytes(self, table: CheckpointTable, rows: np.ndarray | int) -> np.ndarray | float:
        """Bytes that each row holds in place: with a leaf's state go all its KV up to the next live state. One
        number for all where they are alike."""
        if self.kv_bytes_per_token == 0:
            return self.state_bytes
        alone = np.where(table.leaf_tokens[rows] > 0, table.depth[rows] - table.above[rows], 0)
        return self.state_bytes + self.kv_bytes_per_token * alone
