"""The guard against a policy that is wrong about the traffic, and what `gittins` does when it speaks up."""

import pytest

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.learned.gittins import Gittins
from marconi_ext.policies.learned.restart import LEAD_HITS
from marconi_ext.policies.learned.shadow_lru import LruGuard
from marconi_ext.policies.table.checkpoints import CheckpointTable, Kind


@pytest.fixture
def held() -> tuple[LruGuard, CheckpointTable, int, int]:
    """A guard whose shadow holds row `a`, and not `b`; both stand for 1000 tokens."""
    guard, table = LruGuard(), CheckpointTable(8)
    a, b = (table.add(-1, 1000, kind, 1) for kind in (Kind.LAST_TOKEN, Kind.BOUNDARY))
    for row in (a, b):
        guard.offered(table, row)
    guard.request(table, [b], -1, 0)
    assert guard.lead == 0.0  # LRU isn't offered boundaries
    return guard, table, a, b


def test_a_lead_counts_from_where_it_began(held) -> None:
    """The cache was ahead for 500 requests. Those that LRU alone would have served show all the same."""
    guard, table, a, b = held
    for tick in range(1, 501):
        guard.request(table, [b], b, tick)
        assert guard.lead == 0.0
    for tick in range(501, 508):
        guard.request(table, [a], -1, tick)
        assert guard.lead == pytest.approx(tick - 500)
    assert guard.since == 501
    guard.restart()
    guard.request(table, [a], a, 508)
    assert (guard.lead, guard.since) == (0.0, 508)


def test_taking_turns_is_no_lead(held) -> None:
    guard, table, a, b = held
    for tick in range(1, 400, 2):
        guard.request(table, [a], -1, tick)
        guard.request(table, [b], b, tick + 1)
        assert guard.lead == 0.0


def test_hits_are_measured_by_those_of_late(held) -> None:
    """After hits of 1000 tokens, ones of 50 count as soon as they are what there is."""
    guard, table, a, _ = held
    small = table.add(-1, 50, Kind.LAST_TOKEN, 1)
    table.num_live = 2
    guard.offered(table, small)
    for tick in range(1, 100):
        guard.request(table, [a], a, tick)
    for tick in range(100, 130):
        guard.request(table, [small], -1, tick)
    assert guard.lead > LEAD_HITS


def test_the_index_begins_anew_where_lru_is_ahead() -> None:
    rule, table = Gittins(Currency()), CheckpointTable(8)
    row = table.add(-1, 1000, Kind.LAST_TOKEN, 1)
    rule.offered(table, row, 1)
    rule.index.uses[:] = rule.index.exposure[:] = 80.0
    rule.restart.change.mark()
    for tick in range(2, 1 + int(LEAD_HITS)):
        rule.request(table, [row], -1, tick)
        assert rule.restart.changes == 0
    for tick in range(1 + int(LEAD_HITS), 3 + int(LEAD_HITS)):
        rule.request(table, [row], -1, tick)
    assert rule.restart.changes == 1
    assert rule.restart.since == 2
    assert rule.restart.guard.lead < 2.0
    assert rule.index.exposure.sum() < 80.0
