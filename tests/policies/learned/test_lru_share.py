"""LRU's share of the slots where the traffic changes, and what `gittins` does with it."""

from itertools import islice

import numpy as np
import pytest

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.learned.gittins import KEPT, Gittins
from marconi_ext.policies.learned.lru_share import BEFORE, FEW_REQUESTS, FULL_LEAD_HITS, LruShare
from marconi_ext.policies.registry import parse_policy
from marconi_ext.policies.table.checkpoints import CheckpointTable, Kind
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.simulator import Simulator
from marconi_ext.traces import synthetic


@pytest.fixture
def held() -> tuple[LruShare, CheckpointTable, int, int]:
    """The shadow holds row `a`, and not `b`; both stand for 1000 tokens. The cache has 12 states."""
    share, table = LruShare(), CheckpointTable(8)
    table.num_live = 12
    a, b = (table.add(-1, 1000, kind, 1) for kind in (Kind.LAST_TOKEN, Kind.BOUNDARY))
    for row in (a, b):
        share.offered(table, row)
    share.request(table, [b], -1, 0)
    assert share.lead == 0.0  # LRU isn't offered boundaries
    return share, table, a, b


def test_a_lead_counts_from_where_it_began(held) -> None:
    """The cache was ahead for 500 requests. Those that LRU alone would have served show all the same, and LRU has the
    more slots the more they are. The seventh is a change."""
    share, table, a, b = held
    for tick in range(1, 501):
        assert not share.request(table, [b], b, tick)
        assert share.lead == 0.0 and not share.kept
    for tick in range(501, 504):
        assert not share.request(table, [a], -1, tick)
        assert share.lead == pytest.approx(tick - 500)
        assert share.share == pytest.approx(share.lead / 3)
        assert share.kept == {a}
    assert share.since == 501
    assert share.request(table, [a], -1, 504)
    assert (share.lead, share.changes, share.began, share.unused_since) == (0.0, 1, 504, 501)
    assert share.anew(504 + FEW_REQUESTS) and not share.anew(505 + FEW_REQUESTS)


def test_a_lead_is_worth_less_where_old_states_are_hit(held) -> None:
    """LRU serves three of six requests that the cache doesn't, and both serve the others."""
    share, table, a, b = held
    table.kind[b] = Kind.LAST_TOKEN
    share.offered(table, b)
    table.last_use[b] = 400
    for tick in range(501, 507):
        served = b if tick % 2 == 0 else -1
        assert not share.request(table, [b if served == b else a], served, tick)
        table.last_use[b] = 400  # another state of its kind is used each time
    assert share.lead == pytest.approx(3.0) and share.since == 501
    assert share.share == pytest.approx(3 / (3 + 3))
    table.last_use[b] = 502  # states used since the lead began are no evidence
    share.request(table, [b], b, 508)
    assert share.share == pytest.approx(3 / (3 + 3))


def test_lru_has_as_many_slots_as_its_lead_is_worth(held) -> None:
    share, table, a, _ = held
    rows = [table.add(-1, 1000, Kind.LAST_TOKEN, 1) for _ in range(5)]
    for row in rows:
        share.offered(table, row)
    share.request(table, [a], -1, 1)
    assert share.kept == {a, *rows[2:]}  # a lead of one in three: 4 of 12 slots
    share.forgotten(a)
    assert share.kept == set(rows[2:])
    share.request(table, [rows[0]], -1, 2)
    assert share.kept == set(rows)  # 8 slots, and five states


def test_a_superseded_state_leaves_the_shadow(held) -> None:
    share, table, a, _ = held
    deeper = table.add(a, 1200, Kind.LAST_TOKEN, 1)
    table.fanout[a] = 1
    share.offered(table, deeper)
    share.request(table, [a], -1, 1)
    assert share.lead == 0.0
    share.request(table, [a, deeper], -1, 2)
    assert share.lead == pytest.approx(1.0)


def test_taking_turns_is_no_lead(held) -> None:
    share, table, a, b = held
    for tick in range(1, 400, 2):
        share.request(table, [a], -1, tick)
        share.request(table, [b], b, tick + 1)
        assert share.lead == 0.0


def test_hits_are_measured_by_those_of_late(held) -> None:
    """After hits of 1000 tokens, ones of 50 count as soon as they are what there is."""
    share, table, a, _ = held
    small = table.add(-1, 50, Kind.LAST_TOKEN, 1)
    share.offered(table, small)
    for tick in range(1, 100):
        share.request(table, [a], a, tick)
    for tick in range(100, 130):
        share.request(table, [small], -1, tick)
    assert share.changes > 0


def test_what_lru_keeps_goes_last() -> None:
    rule, table = Gittins(Currency()), CheckpointTable(8)
    old, new = (table.add(-1, depth, Kind.LAST_TOKEN, 1) for depth in (9000, 50))
    for row in (old, new):
        rule.offered(table, row, 1)
        table.set_live(row, 1)
    rows = np.array([old, new])
    assert rule.scores(table, rows, 2).argmin() == 1
    rule.lru.kept = frozenset({new})
    scores = rule.scores(table, rows, 2)
    assert scores.argmin() == 0 and scores[1] >= KEPT
    assert [rule.score(table, row, 2) for row in (old, new)] == scores.tolist()


def test_what_was_before_a_change_counts_little() -> None:
    """LRU alone would have served four requests in a row: what was learned counts a sixteenth, and so does a state
    that isn't used since, until 256 requests later."""
    rule, table = Gittins(Currency()), CheckpointTable(8)
    rows = [table.add(-1, 1000, Kind.LAST_TOKEN, 1) for _ in range(2)]
    for row in rows:
        rule.offered(table, row, 1)
        table.set_live(row, 1)
    rule.index.uses[:] = rule.index.exposure[:] = 80.0
    for tick in range(2, 2 + int(FULL_LEAD_HITS) + 1):
        rule.request(table, [rows[1]], -1, tick)
    assert rule.lru.changes == 1 and rule.lru.unused_since == 2
    assert rule.index.uses.max() < 1.01 * 80 * BEFORE + 1
    tick = rule.lru.began + 1
    rule.request(table, [], -1, tick)
    new = table.add(-1, 1000, Kind.LAST_TOKEN, tick)
    rule.offered(table, new, tick)
    table.set_live(new, tick)
    assert rule.class_name(rows[0]) == rule.class_name(new)
    scores = [rule.scores(table, np.array([rows[0], new]), now) for now in (tick, tick + FEW_REQUESTS)]
    assert scores[0][0] < 2 * BEFORE * scores[0][1]
    assert scores[1][0] > 0.5 * scores[1][1]


def test_traffic_that_changes_is_followed_as_fast_as_by_lru() -> None:
    """Few-shot prompts, whose ends are never come back to, then agents, whose only ends are: what was learned of the
    first held the second back, 68 % of the tokens reused where LRU reuses 75."""

    def hits(name: str) -> int:
        simulator = Simulator(Capacity(slots=16), *parse_policy(name).build(Currency()), Currency())
        for request in synthetic("few-shot", sessions=1000, prefixes=20):
            simulator.serve(request)
        return sum(
            simulator.serve(request).hit_tokens for request in synthetic("agent", sessions=14, turns=6)
        )

    assert hits("gittins") > hits("lru")


def test_a_burst_of_prompts_that_share_nothing_costs_no_state() -> None:
    """Few-shot prompts go on after 60 prompts of their own each: all prefixes are still held."""

    def hits(strangers: int) -> int:
        simulator = Simulator(Capacity(slots=16), *parse_policy("gittins").build(Currency()), Currency())
        requests = list(synthetic("few-shot", sessions=700, prefixes=8))
        for request in requests[:600]:
            simulator.serve(request)
        for request in islice(synthetic("agent", sessions=60, turns=1, system_tokens=0), strangers):
            simulator.serve(request)
        return sum(simulator.serve(request).hit_tokens for request in requests[600:])

    assert hits(60) > 0.99 * hits(0)
