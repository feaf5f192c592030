"""The search for a victim, bounded and in windows, against a full scan."""

from itertools import count
from typing import ClassVar

import numpy as np
import pytest

from marconi_ext.policies.admission import Exact, Offer
from marconi_ext.policies.currency import Currency
from marconi_ext.policies.learned.gittins import Gittins, GittinsBasic
from marconi_ext.policies.runtime import PolicyRuntime
from marconi_ext.policies.table.checkpoints import CheckpointTable, Fate, Kind
from marconi_ext.policies.table.victims import EXACT_STATES, KEPT, WINDOW, VictimSearch


class Given:
    """Scores handed in by row."""

    windowed: ClassVar[bool] = True

    def __init__(self, score: np.ndarray) -> None:
        self.given, self.noted, self.scored, self.looked_at = score, [], 0, 0
        self.bound = np.random.default_rng(1).random(len(score))  # lower ones than scores, which are above 0

    def changed(self) -> np.ndarray:
        return np.array(self.noted, np.int64)

    def scores(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
        self.scored += len(rows)
        return self.given[rows]

    def score(self, table: CheckpointTable, row: int, tick: int) -> float:
        self.scored += 1
        return float(self.given[row])

    def floors(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
        self.looked_at = len(rows)
        return self.given[rows] * self.bound[rows]


def table_of(rows: int) -> CheckpointTable:
    table = CheckpointTable(rows)
    for i in range(rows):
        table.set_live(table.add(-1, i + 1, Kind.LAST_TOKEN, i), i)
    return table


TICKS = count(1)


def search_all(search: VictimSearch, table: CheckpointTable) -> int | None:
    """At a new tick each time."""
    return search.lowest_of_some(table, next(TICKS))


def test_small_pools_are_searched_whole() -> None:
    policy = Given(np.random.default_rng(0).random(EXACT_STATES))
    search, table = VictimSearch(policy), table_of(EXACT_STATES)
    assert not search.narrows(table)
    rows = table.live_rows()[:-1]
    lowest = int(policy.given[:-1].argmin())
    assert search.lowest(table, rows, 1) == lowest
    assert policy.scored <= 2 * len(rows)
    policy.given[-1] = policy.given[lowest]
    assert search.lowest(table, rows, 1, newcomer=EXACT_STATES - 1) == lowest
    policy.given[-1] = -1.0
    assert search.lowest(table, rows, 1, newcomer=EXACT_STATES - 1) == EXACT_STATES - 1


def test_of_equal_scores_the_first_is_found() -> None:
    policy = Given(np.full(100, 3.0))
    search, table = VictimSearch(policy), table_of(100)
    for _ in range(20):
        assert search.lowest(table, table.live_rows(), 1) == 0
        policy.bound = np.random.default_rng(policy.scored).random(100)


def test_large_pools_find_the_lowest_within_one_round() -> None:
    n = 5000
    policy = Given(1 + np.random.default_rng(0).random(n))
    policy.bound[:] = 0.999
    search, table = VictimSearch(policy), table_of(n)
    assert search.narrows(table)
    round_searches = -(-n // WINDOW)
    for _ in range(round_searches):
        search_all(search, table)
        assert policy.looked_at <= WINDOW + KEPT
    assert search_all(search, table) == int(policy.given.argmin())
    policy.given[4321] = 0.0  # falls out of sight
    assert 4321 in [search_all(search, table) for _ in range(round_searches)]
    policy.given[4321] = 2.0
    policy.given[77], policy.noted = 0.0, [77]  # falls, and the policy says so
    assert search_all(search, table) == 77


def test_only_states_that_may_go_are_found() -> None:
    n = 3000
    policy = Given(np.arange(n, dtype=float))
    search, table = VictimSearch(policy), table_of(n)
    for _ in range(20):
        search_all(search, table)
    policy.noted = [0, 1]
    table.pins[:500] = 1
    table.leaf_tokens[2900:] = 1
    assert all(search_all(search, table) >= 500 for _ in range(20))
    assert search_all(VictimSearch(policy, leaves=True), table) >= 2900
    table.pins[:n] = 1
    assert search_all(search, table) is None
    assert search.lowest_of_some(table, 0, newcomer=7) == 7


def test_more_victims_at_one_tick_are_the_next_lowest() -> None:
    n = 3000
    policy = Given(1 + np.random.default_rng(0).random(n))
    policy.bound[:] = 0.999
    search, table = VictimSearch(policy), table_of(n)
    for _ in range(-(-n // WINDOW)):
        search_all(search, table)
    order = policy.given.argsort().tolist()
    tick, gone = 10**6, []
    table.pins[order[2]] = 1
    for _ in range(10):
        gone.append(search.lowest_of_some(table, tick))
        table.set_gone(gone[-1], Fate.EVICTED)
    assert gone == order[:2] + order[3:11]
    table.pins[:n] = 1
    assert search.lowest_of_some(table, tick) is None
    table.check()


@pytest.mark.parametrize("policy", [GittinsBasic, Gittins])
@pytest.mark.parametrize("kv_bytes", [0.0, 3.0])
def test_bounds_and_single_scores_agree_with_a_full_scan(policy, kv_bytes: float) -> None:
    """Through traffic with ghosts, pins and forks, changed or not, the search agrees with a full scan to the bit."""
    rng, currency = np.random.default_rng(1), Currency(2.0, 0.01, 1e4, kv_bytes)
    runtime = PolicyRuntime(Exact(), policy(currency), currency)
    table, rule, places = runtime.table, runtime.eviction, []
    seen = set()
    for turn in range(1500):
        runtime.tick += 1
        path = place_of(table, places, rng)
        served = next((row for row in reversed(path) if table.live[row]), -1)
        runtime.use(path, served)
        if rule.lru is not None:
            rule.lru.began = runtime.tick - 300 * (turn % 2)
            rule.lru.unused_since = runtime.tick - 40
        parent = path[-1] if path else -1
        depth = 1 + int(rng.integers(1, 500)) + (int(table.depth[parent]) if path else 0)
        kind = Kind(int(rng.integers(4)))
        new = runtime.record(parent, depth, kind)
        runtime.offer(new, Offer(depth, kind))
        places.append(new)
        if parent >= 0:
            table.fanout[parent] += 1
            table.leaf_tokens[parent] = 0
        table.leaf_tokens[new] = 9
        for row in path:
            table.pins[row] += 1
        rows = runtime.candidates()
        if table.num_live >= 60 and len(rows):
            for row in path[: turn % 3]:
                table.pins[row] -= 1  # so that some on the path may go
            rows = runtime.candidates()
            scores = rule.scores(table, np.append(rows, new), runtime.tick)
            assert (rule.floors(table, rows, runtime.tick) <= scores[:-1]).all()
            for at in rng.integers(len(rows), size=4):
                assert rule.score(table, int(rows[at]), runtime.tick) == scores[at]
            assert rule.score(table, new, runtime.tick) == scores[-1]
            if isinstance(rule, Gittins):
                by_kv = rule.by_kv.scores(table, rows, runtime.tick)
                assert runtime.leaf_victim(rows) == int(rows[by_kv.argmin()])
            victim = runtime.victim(rows, new)
            assert victim == int(np.append(rows, new)[scores.argmin()])
            seen.add("refused" if victim == new else "evicted")
            for row in path[: turn % 3]:
                table.pins[row] += 1
            if victim == new:
                runtime.refused(new)
            else:
                runtime.evicted(victim)
                runtime.saved(new)
        else:
            runtime.saved(new)
        for row in path:
            table.pins[row] -= 1
        if turn % 100 == 0:
            table.check()
    assert seen == {"refused", "evicted"}


def place_of(table: CheckpointTable, places: list[int], rng: np.random.Generator) -> list[int]:
    """The path to a record drawn at random, mostly a recent one; shallow first."""
    if len(places) < 5 or rng.random() < 0.1:
        return []
    row = places[-int(rng.integers(1, 5))] if rng.random() < 0.7 else places[int(rng.integers(len(places)))]
    path = []
    while row >= 0:
        path.append(row)
        row = int(table.parent[row])
    return path[::-1]
