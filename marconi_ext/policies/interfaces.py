"""What the runtime asks of a policy."""

from __future__ import annotations

from typing import ClassVar, Protocol

import numpy as np

from marconi_ext.policies.table.checkpoints import CheckpointBook


class Eviction(Protocol):
    """A policy. One that `refuses` may turn a newcomer away that scores lower than every state held."""

    refuses: ClassVar[bool]

    def request(self, book: CheckpointBook, path: list[int], served: int, tick: int) -> None: ...
    def offered(self, book: CheckpointBook, row: int, tick: int) -> None: ...
    def gone(self, book: CheckpointBook, row: int, tick: int) -> None: ...
    def forgotten(self, book: CheckpointBook, row: int) -> None: ...
    def scores(self, book: CheckpointBook, rows: np.ndarray, tick: int) -> np.ndarray: ...
