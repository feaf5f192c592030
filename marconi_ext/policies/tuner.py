"""`marconi`: the paper's FLOP-aware utility with α tuned online, by a replay that needs no tokens.

α starts at 0 (LRU). The first eviction, after R requests, sets a window of 5·R requests (at least 300). When it
is full, each request's record path and offers, logged as small integers, are replayed against a pool of as many
states as the cache held, for a coarse grid of α and then finer around the best: 8 token-free replays of at most
1,000 requests in place of 21 full ones.
Deviates from the paper: one cheap replay instead of 21 of whole trees; the pool is counted in states.
"""

from __future__ import annotations

import time
from typing import ClassVar

import numpy as np

from marconi_ext.policies.checkpoints import CheckpointBook, Kind
from marconi_ext.policies.eviction import Currency, FlopAware

COARSE = (0.0, 0.5, 1.0, 1.6)
MIN_WINDOW_REQUESTS = 300  # a small pool evicts after a handful of requests, which say nothing about α
REPLAYED_REQUESTS = 1000  # the window's end: half warms up, half is scored


class Marconi(FlopAware):
    """α = 0 until the window is full, then the best of its replays; tuned again every `interval` windows."""

    refuses: ClassVar[bool] = False

    def __init__(
        self, currency: Currency | None = None, multiplier: int = 5, max_window_requests: int = 5000
    ) -> None:
        super().__init__(currency, alpha=0.0, max_fanout=1)
        self.multiplier = multiplier
        self.max_window_requests = max_window_requests
        self.window_requests: int | None = None
        self.tuned = False
        self.tuning_seconds = 0.0
        self._log: list[tuple[list[int], list[int]]] = []  # (path of records, records offered)
        self._depth: dict[int, int] = {}  # by record
        self._parent: dict[int, int] = {}
        self._record_of: dict[int, int] = {}  # book row -> record: rows are handed out again, records aren't
        self._held = 0

    def request(self, book: CheckpointBook, path: list[int], served: int, tick: int) -> None:
        if self.tuned:
            return
        if self.window_requests is not None and len(self._log) >= self.window_requests:
            self._tune()
            return
        self._log.append(([self._record_of[row] for row in path if row in self._record_of], []))

    def offered(self, book: CheckpointBook, row: int, tick: int) -> None:
        if self.tuned or not self._log:
            return
        if row not in self._record_of:
            record = len(self._depth)
            self._record_of[row] = record
            self._depth[record] = int(book.depth[row])
            self._parent[record] = self._record_of.get(int(book.parent[row]), -1)
        self._log[-1][1].append(self._record_of[row])

    def forgotten(self, book: CheckpointBook, row: int) -> None:
        self._record_of.pop(row, None)

    def scores(self, book: CheckpointBook, rows: np.ndarray, tick: int) -> np.ndarray:
        if self.window_requests is None:
            window = max(self.multiplier * len(self._log), MIN_WINDOW_REQUESTS)
            self.window_requests = min(window, self.max_window_requests)
            self._held = book.num_live
        return super().scores(book, rows, tick)

    def parameters(self) -> dict[str, float]:
        return {
            "alpha": self.alpha,
            "window_requests": float(self.window_requests or 0),
            "tuned": float(self.tuned),
        }

    def _tune(self) -> None:
        started = time.process_time()
        saved = {alpha: self.replay(alpha) for alpha in COARSE}
        for step in (0.2, 0.1):
            best = max(saved, key=lambda a: (saved[a], -a))
            for alpha in (round(best - step, 1), round(best + step, 1)):
                if 0 <= alpha <= 2 and alpha not in saved:
                    saved[alpha] = self.replay(alpha)
        self.alpha = max(saved, key=lambda a: (saved[a], -a))
        self.tuned = True
        self.tuning_seconds = time.process_time() - started
        self._log.clear()
        self._record_of.clear()

    def replay(self, alpha: float, scored_requests: int = 500) -> float:
        """FLOPs that α would have saved over the window's last requests."""
        rule = FlopAware(self.currency, alpha)
        book, rows, saved = CheckpointBook(), {}, 0.0
        log = self._log[-REPLAYED_REQUESTS:]
        first_scored = len(log) - scored_requests
        linear, quadratic = self.currency.linear, self.currency.quadratic
        for tick, (path, offers) in enumerate(log, start=1):
            served = next((rows[r] for r in reversed(path) if r in rows and book.live[rows[r]]), -1)
            if served >= 0:
                book.last_use[served] = tick
                if tick > first_scored:
                    depth = float(book.depth[served])
                    saved += linear * depth + quadratic * depth * depth
            for record in offers:
                if record not in rows:
                    parent = rows.get(self._parent[record], -1)
                    rows[record] = book.add(parent, self._depth[record], Kind.LAST_TOKEN, tick)
                if book.live[rows[record]]:
                    book.last_use[rows[record]] = tick
                    continue
                if book.num_live >= self._held:
                    live = book.live_rows()
                    book.set_gone(int(live[rule.scores(book, live, tick).argmin()]), 2)
                book.set_live(rows[record], tick)
        return saved
