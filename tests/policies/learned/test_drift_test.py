"""The test for a change of traffic, and what `gittins` does when there is one."""

from itertools import islice
from math import log

import numpy as np
import pytest

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.learned.drift_test import SUSPICIOUS_REQUESTS, TEST_REQUESTS, ChangeTest
from marconi_ext.policies.learned.gittins import BEFORE, Gittins
from marconi_ext.policies.learned.gittins_index import GittinsIndex
from marconi_ext.policies.learned.restart import FEW_REQUESTS
from marconi_ext.policies.registry import parse_policy
from marconi_ext.policies.table.checkpoints import CheckpointTable, Kind
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.simulator import Simulator
from marconi_ext.traces import synthetic


@pytest.fixture
def change() -> tuple[GittinsIndex, ChangeTest]:
    """Two classes, the first used at ages 8 to 11 in one of ten requests, the second in one of a thousand."""
    index = GittinsIndex(2, 1e15, prior=np.ones(2))
    index.exposure[:, 6] = 100_000.0
    index.uses[:, 6] = 10_000.0, 100.0
    index.refresh(0)
    test = ChangeTest(index)
    test.mark()
    return index, test


def windows(index: GittinsIndex, test: ChangeTest, uses: tuple[float, float], count: int) -> list[bool]:
    """So many windows of 16 requests with five records of each class, and so many uses of each."""
    changed = []
    for _ in range(count):
        index.exposure[:, 6] += 80.0
        index.uses[:, 6] += uses
        changed.append(test.test(test._tested + TEST_REQUESTS))
    return changed


def test_evidence_by_hand(change) -> None:
    """Lately 1 in 10 for both; learned, 1 in 10 and 1 in 1000. In 80 requests of each, one use of each: the second is
    100 times likelier, and any two uses less so by (0.2 / 0.101)², as more were foretold."""
    index, test = change
    test._rate = np.full_like(index.rate, 0.1)
    index.exposure[:, 6] += 80.0
    index.uses[:, 6] += 1.0
    assert not test.test(TEST_REQUESTS)
    assert test._evidence == pytest.approx(log(100) - 2 * log(0.2 / 0.101), abs=0.05)


def test_other_records_are_used_than_before(change) -> None:
    """The second class takes the first one's place: eight uses a hundred times less likely are enough."""
    index, test = change
    assert windows(index, test, (8.0, 0.0), 20) == [False] * 20
    before = test._tested
    assert windows(index, test, (0.0, 8.0), 1) == [True]
    assert test.since == before
    assert test.lately.uses[1].sum() > test.lately.uses[0].sum()


def test_fewer_uses_of_the_same_records_are_no_change(change) -> None:
    index, test = change
    windows(index, test, (8.0, 0.0), 20)
    assert not any(windows(index, test, (0.0, 0.0), 20))
    assert not any(windows(index, test, (1.0, 0.0), 20))


def test_what_the_index_has_learned_since_is_no_evidence(change) -> None:
    index, test = change
    windows(index, test, (8.0, 0.0), 20)
    index.uses[1, 6] += 8.0
    index.refresh(TEST_REQUESTS)
    test.mark()
    assert not any(windows(index, test, (8.0, 0.0), 1))
    assert test.lately.uses[1].sum() == 0.0


def test_a_test_is_due_every_sixteen_requests_and_sooner_where_something_is_suspicious(change) -> None:
    _, test = change
    assert [tick for tick in range(1, 40) if test.due(tick, suspicious=False)] == [16, 32]
    test.test(32)
    assert [tick for tick in range(33, 40) if test.due(tick, suspicious=True)] == [36, 37, 38, 39]
    test._evidence = 3.0
    assert test.due(32 + SUSPICIOUS_REQUESTS, suspicious=False)


def test_there_is_no_evidence_while_an_empty_cache_fills(change) -> None:
    index, test = change
    test.from_tick = 1000
    assert not any(windows(index, test, (0.0, 8.0), 10))
    assert test.since == test._tested


def test_records_of_before_count_little_until_the_index_has_learned() -> None:
    rule, table = Gittins(Currency()), CheckpointTable(8)
    rows = [table.add(-1, 1000, Kind.LAST_TOKEN, 1) for _ in range(2)]
    for row in rows:
        rule.offered(table, row, 1)
        table.set_live(row, 1)
    rule._use[rows] = rule._counted[rows] = 80, 120
    tick = FEW_REQUESTS + 1
    before = rule.scores(table, np.array(rows), tick)
    rule.restart._begin(tick, since=100)
    rule._refresh(table, tick)
    score = rule.scores(table, np.array(rows), tick)
    assert score[0] < 2 * BEFORE * score[1]
    assert rule.index.uses.sum() == 0  # nothing of late
    rule.restart.began -= FEW_REQUESTS + 1
    after = rule.scores(table, np.array(rows), tick)
    assert after[0] / after[1] > 0.5 * before[0] / before[1]


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
