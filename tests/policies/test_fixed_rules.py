"""The simple evictions, on a table worked by hand."""

import pytest

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.fixed_rules import FlopAware, Lru, LruLeaf, SegLen
from marconi_ext.policies.table.checkpoints import CheckpointTable, Kind


@pytest.fixture
def table() -> CheckpointTable:
    """shared (100) -> old tail (300) -> new tail (400), and shared -> other (1100); all live."""
    table = CheckpointTable(2)
    shared = table.add(-1, 100, Kind.BRANCH, 1)
    old = table.add(shared, 300, Kind.LAST_TOKEN, 2)
    new = table.add(old, 400, Kind.LAST_TOKEN, 3)
    other = table.add(shared, 1100, Kind.LAST_TOKEN, 4)
    for tick, row in enumerate((shared, old, new, other), start=1):
        table.set_live(row, tick)
    table.last_path[:4] = [9, 9, 9, 4]
    table.check()
    return table


def victim(rule, table, tick=10) -> int:
    rows = table.live_rows()
    return int(rows[rule.scores(table, rows, tick).argmin()])


def test_fixed_rules_pick_by_hand(table) -> None:
    """LRU: the oldest, shared. Over leaves with whole paths refreshed: other (4 against 9). SegLen: tokens above
    over age: shared 100/10, old 200/9, new 100/8, other 1000/7: shared. α = 0 is LRU; a large α drops the state
    that saves least per byte: shared or new (100 tokens each); recency decides for shared."""
    assert victim(Lru(), table) == 0
    assert victim(LruLeaf(), table) == 3
    assert victim(SegLen(), table) == 0
    assert victim(FlopAware(alpha=0.0), table) == 0
    assert victim(FlopAware(Currency(linear=1.0), alpha=100.0), table) == 0
    table.last_use[0] = 8
    assert victim(FlopAware(Currency(linear=1.0), alpha=100.0), table) == 2
