"""`marconi`: the paper's FLOP-aware utility with α tuned online, by a replay that needs no tokens.

α starts at 0 (LRU). The first eviction, after R requests, sets a window of 5·R requests (at least 300). When it
is full, the end of it is replayed for all α (`alpha_replay.py`), and the best holds from then on. The simulator
tunes on the spot. A live engine sets `background`: it takes `snapshot()` when `due`, runs `tune_alpha` on it in
another process, and calls `apply` at a request that it fixed beforehand, the same on every rank.
Deviates from the paper: one cheap replay instead of 21 of whole trees; the pool is counted in states.
"""

from __future__ import annotations

import time
from typing import ClassVar

import numpy as np

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.fixed_rules import FlopAware
from marconi_ext.policies.paper.alpha_replay import TuningLog, tune_alpha
from marconi_ext.policies.table.checkpoints import CheckpointTable

MIN_WINDOW_REQUESTS = 300  # a small pool evicts after a handful of requests, which say nothing about α
REPLAYED_REQUESTS = 1500  # the window's end


class Marconi(FlopAware):
    """α = 0 until the window is full and was replayed."""

    refuses: ClassVar[bool] = False

    def __init__(
        self,
        currency: Currency | None = None,
        multiplier: int = 5,
        max_window_requests: int = 5000,
        background: bool = False,
    ) -> None:
        super().__init__(currency, alpha=0.0, max_fanout=1)
        self.multiplier = multiplier
        self.max_window_requests = max_window_requests
        self.background = background
        self.window_requests: int | None = None
        self.tuned = False
        self.tuning_seconds = 0.0
        self._log: list[tuple[list[int], list[int]]] = []  # (path of records, records offered)
        self._depth: list[int] = []  # by record
        self._parent: list[int] = []
        self._record_of: dict[int, int] = {}  # table row -> record: rows are handed out again, records aren't
        self._held = 0

    @property
    def due(self) -> bool:
        """The window is full and α isn't tuned yet."""
        return not self.tuned and self.window_requests is not None and len(self._log) >= self.window_requests

    def request(self, table: CheckpointTable, path: list[int], served: int, tick: int) -> None:
        if self.due and not self.background:
            started = time.process_time()
            self.apply(tune_alpha(self.snapshot()))
            self.tuning_seconds = time.process_time() - started
        if self.tuned or self.due:
            return
        records = [self._record_of[row] for row in path if row in self._record_of]
        # a fork that served would have been offered again by a request that finds its state gone
        again = served >= 0 and served == path[-1] and served in self._record_of and table.fanout[served] > 1
        self._log.append((records, [self._record_of[served]] if again else []))

    def offered(self, table: CheckpointTable, row: int, tick: int) -> None:
        if self.tuned or not self._log:
            return
        if row not in self._record_of:
            self._record_of[row] = len(self._depth)
            self._depth.append(int(table.depth[row]))
            above = int(table.parent[row])
            while above >= 0 and above not in self._record_of:
                above = int(table.parent[above])
            self._parent.append(self._record_of.get(above, -1))
            for child in table.children[row]:
                if child in self._record_of:
                    self._parent[self._record_of[child]] = self._record_of[row]
        self._log[-1][1].append(self._record_of[row])

    def forgotten(self, table: CheckpointTable, row: int) -> None:
        self._record_of.pop(row, None)

    def scores(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
        if self.window_requests is None:
            window = max(self.multiplier * len(self._log), MIN_WINDOW_REQUESTS)
            self.window_requests = min(window, self.max_window_requests)
        if self._held == 0:
            self._held = table.num_live
        return super().scores(table, rows, tick)

    def snapshot(self) -> TuningLog:
        """What `tune_alpha` needs of the window; picklable."""
        log = self._log[-REPLAYED_REQUESTS:]
        paths, offers = [path for path, _ in log], [offered for _, offered in log]
        return TuningLog(
            depth=np.array(self._depth, np.int64),
            parent=np.array(self._parent, np.int64),
            path=np.array([record for path in paths for record in path], np.int64),
            path_ends=np.cumsum([len(path) for path in paths]),
            offers=np.array([record for offered in offers for record in offered], np.int64),
            offer_ends=np.cumsum([len(offered) for offered in offers]),
            slots=max(self._held, 1),
            currency=self.currency,
        )

    def apply(self, alpha: float) -> None:
        """`alpha` holds from now on; the window is dropped."""
        self.alpha = alpha
        self.tuned = True
        self._log.clear()
        self._record_of.clear()

    def restart(self) -> None:
        """Record a new window; α holds until that has been replayed."""
        self.tuned = False
        self._log.clear()
        self._record_of.clear()
        self._depth.clear()
        self._parent.clear()
        self._held = 0

    def parameters(self) -> dict[str, float]:
        return {
            "alpha": self.alpha,
            "window_requests": float(self.window_requests or 0),
            "tuned": float(self.tuned),
        }
