"""Where the traffic isn't what it was, or plain LRU is ahead, the index begins anew from what was seen of late."""

from __future__ import annotations

from collections.abc import Callable

from marconi_ext.policies.learned.drift_test import ChangeTest
from marconi_ext.policies.learned.gittins_index import GittinsIndex
from marconi_ext.policies.learned.shadow_lru import LruGuard
from marconi_ext.policies.table.checkpoints import CheckpointTable

LEAD_HITS = 6.0  # by which LRU must be ahead: less happens by chance
SUSPICIOUS_HITS = 1.0
FEW_REQUESTS = 256  # since it began to learn


class Restart:
    """`began`: the tick from which on the index has learned; `since`: from which on the traffic is what it is."""

    def __init__(self, index: GittinsIndex) -> None:
        self.change = ChangeTest(index, FEW_REQUESTS)
        self.guard = LruGuard()
        self.changes = self.began = self.since = 0
        self._index = index

    def request(
        self,
        table: CheckpointTable,
        path: list[int],
        served: int,
        tick: int,
        settle: Callable[[CheckpointTable, int], None],
    ) -> bool:
        """Whether the index has begun anew, and is to be refreshed. settle: tells it of all exposure"""
        guard = self.guard
        guard.request(table, path, served, tick)
        if not (guard.lead > LEAD_HITS or self.change.due(tick, guard.lead > SUSPICIOUS_HITS)):
            return False
        settle(table, tick)
        if self.change.test(tick):
            self._begin(tick, self.change.since)
        elif guard.lead > LEAD_HITS:
            self._begin(tick, guard.since)
        else:
            return False
        return True

    def offered(self, table: CheckpointTable, row: int) -> None:
        self.guard.offered(table, row)

    def forgotten(self, row: int) -> None:
        self.guard.forgotten(row)

    def mark(self) -> None:
        self.change.mark()

    def _begin(self, tick: int, since: int) -> None:
        self._index.begin_from(self.change.lately)
        self.guard.restart()
        self.since, self.began = since, tick
        self.changes += 1
