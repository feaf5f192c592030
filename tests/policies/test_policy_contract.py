"""One contract for every policy: no cell may exceed its capacity, hold pinned states, or depend on chance."""

import numpy as np
import pytest
from mixed_trace import mixed_trace

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.registry import EVICTIONS, parse_policy
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.simulator import Simulator
from marconi_ext.traces import Request

CURRENCY = Currency(linear=1e9, quadratic=1e4, state_bytes=1e8, kv_bytes_per_token=1.6e4)
POLICIES = [f"{name}:1.0" if wants else name for name, (_, wants, _) in EVICTIONS.items()]
POLICIES += [
    "every-block+lru",
    "grid+lru",
    "exact+seglen",
    "foresight+gittins",
    "fork-predictor+gittins-basic",
]
CAPACITIES = [
    Capacity(slots=1),
    Capacity(slots=12),
    Capacity(slots=12, tokens=4_000),
    Capacity(bytes=3 * 10**9),
]


@pytest.fixture(scope="module")
def trace() -> list[Request]:
    return mixed_trace()


def build(policy: str, capacity: Capacity, concurrency: int = 1) -> Simulator:
    return Simulator(capacity, *parse_policy(policy).build(CURRENCY), CURRENCY, concurrency)


@pytest.mark.parametrize("capacity", CAPACITIES, ids=lambda c: c.label)
@pytest.mark.parametrize("policy", POLICIES)
def test_contract(policy, capacity, trace) -> None:
    """Hits never exceed the KV held nor prompt - 1; the tables balance at every step; two runs are the same."""
    first, second = build(policy, capacity), build(policy, capacity)
    for i, request in enumerate(trace):
        served = first.serve(request)
        assert served == second.serve(request)
        assert 0 <= served.hit_tokens <= served.kv_tokens < len(request.input_ids)
        assert sum(served.lost.values()) == served.kv_tokens - served.hit_tokens
        if i % 10 == 0:
            first.check()
    first.finish()
    assert first.tree.num_states <= (capacity.slots or 10**9)
    assert all(isinstance(v, float) for v in first.eviction.parameters().values())


@pytest.mark.parametrize("policy", ["lru", "gittins", "marconi"])
def test_unlimited_exact_states_lose_the_first_divergence_only(policy, trace) -> None:
    simulator = build(f"exact+{policy}", Capacity())
    lost = {cause for request in trace for cause in simulator.serve(request).lost}
    assert lost <= {"first_divergence"}
    simulator.finish()


@pytest.mark.parametrize("policy", POLICIES)
def test_pinned_paths_survive_concurrency(policy, trace) -> None:
    simulator = build(policy, Capacity(bytes=10**9), concurrency=6)
    for request in trace[:60]:
        simulator.serve(request)
        assert all(end.pins > 0 and end.parent is not None for end in simulator.running)
        assert not simulator.table.pins[simulator.table.rows()].any(), (
            "states that have been copied stay locked"
        )
    simulator.finish()
    assert all(node.pins == 0 for node in simulator.tree.nodes())


def test_a_prompt_larger_than_the_cache_passes_through() -> None:
    simulator = build("gittins", Capacity(slots=4, tokens=100))
    ids = np.arange(500, dtype=np.int32)
    for i in range(3):
        assert simulator.serve(Request("s", i, 0.0, ids, ids[:5])).hit_tokens == 0
    assert simulator.counts["requests_too_large"] == 3
    simulator.finish()
