"""The bound for pools of slots: by hand, against every choice on small traces, and above every policy."""

from itertools import product

import numpy as np
import pytest

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.registry import parse_policy
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.simulator import Simulator
from marconi_ext.simulator.upper_bound import intervals, upper_bound
from marconi_ext.simulator.workload import load_workload
from marconi_ext.traces import Request, synthetic


def request(*tokens: int) -> Request:
    return Request("s", 0, 0.0, np.array(tokens, np.int32), np.array([99], np.int32))


# two conversations in turns, A and B, of 3 and 5 tokens that go on by one, and a third one that parts from A
TRACE = [
    request(1, 2, 3),
    request(5, 6, 7, 8, 9),
    request(1, 2, 3, 4),
    request(5, 6, 7, 8, 9, 10),
    request(1, 2, 6, 6),
]


def test_intervals_by_hand() -> None:
    """Request 2 can start after 3 tokens, held since 0; 3 after 5, since 1; 4 after 2 tokens, since 2."""
    ways = intervals(TRACE)
    assert list(zip(ways.request, ways.since, ways.depth, strict=True)) == [(2, 0, 3), (3, 1, 5), (4, 2, 2)]


@pytest.mark.parametrize(("slots", "tokens"), [(1, 5), (2, 10), (3, 10)])
def test_bound_by_hand(slots, tokens) -> None:
    """One slot: [0, 2) and [2, 4) don't overlap and give 3 + 2; [1, 3) overlaps both and gives 5 as well."""
    assert upper_bound(intervals(TRACE), slots) == pytest.approx(tokens, abs=0.01)


def test_a_shallower_and_shorter_way_is_known() -> None:
    """All share one token with the request before, and every other one three tokens with the one before that."""
    trace = [request(1, 2 + i % 2, 3, 4 + i) for i in range(8)]
    ways = intervals(trace)
    assert list(zip(ways.request, ways.since, ways.depth, strict=True))[:3] == [
        (1, 0, 1),
        (2, 0, 3),
        (2, 1, 1),
    ]
    assert upper_bound(ways, 2) == pytest.approx(1 + 6 * 3, abs=0.05)
    assert upper_bound(ways, 1) >= best_choice(ways, 1)


def best_choice(ways, slots: int) -> int:
    """Every choice of at most one interval a request."""
    options = [
        [None, *np.flatnonzero(ways.request == i)]
        for i in range(ways.num_requests)
        if (ways.request == i).any()
    ]
    best = 0
    for choice in product(*options):
        used = np.zeros(ways.num_requests, np.int64)
        for way in (way for way in choice if way is not None):
            used[ways.since[way] : ways.request[way]] += 1
        if used.max(initial=0) <= slots:
            best = max(best, sum(int(ways.depth[way]) for way in choice if way is not None))
    return best


@pytest.mark.parametrize("seed", range(6))
def test_no_choice_is_above_it(seed) -> None:
    rng = np.random.default_rng(seed)
    trace = [request(*rng.integers(0, 2, rng.integers(2, 7)).tolist()) for _ in range(7)]
    ways = intervals(trace)
    for slots in (1, 2, 3):
        assert upper_bound(ways, slots) >= best_choice(ways, slots) - 1e-6


@pytest.mark.parametrize("traffic", ["agent", "fork", "few-shot", "tree-search"])
def test_no_policy_is_above_it(traffic) -> None:
    workload = load_workload(traffic, 0, synthetic(traffic, seed=0, sessions=20))
    ways = intervals(workload.requests)
    assert upper_bound(ways, 1000) == pytest.approx(workload.ideal_tokens)
    for slots in (3, 8):
        bound = upper_bound(ways, slots)
        assert bound <= workload.ideal_tokens + 1e-6
        for policy in ("exact+seglen", "foresight+gittins"):
            simulator = Simulator(Capacity(slots=slots), *parse_policy(policy).build(Currency()), Currency())
            assert sum(simulator.serve(r).hit_tokens for r in workload.requests) <= bound + 1e-6
