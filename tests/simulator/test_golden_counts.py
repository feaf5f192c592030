"""Regression, not correctness: the tokens that each policy hits on one seeded trace. A change here must be meant."""

import pytest

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.registry import parse_policy
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.simulator import Simulator
from marconi_ext.traces import Request, synthetic

CURRENCY = Currency(linear=1e9, quadratic=1e4)
GOLDEN = {
    "vllm+": 0,
    "sglang": 111_872,
    "lru-leaf": 136_261,
    "lru": 110_968,
    "seglen": 142_513,
    "flop-aware:1.0": 134_456,
    "gittins-basic": 143_243,
    "gittins": 165_178,
    "foresight+gittins": 161_295,
}


@pytest.fixture(scope="module")
def trace() -> list[Request]:
    """Agents, tool search and few-shot prompts in turns: 250 requests."""
    sizes = {"agent": 12, "tree-search": 12, "few-shot": 90}
    kinds = [list(synthetic(name, seed=3, sessions=n)) for name, n in sizes.items()]
    mixed = [request for turn in zip(*kinds, strict=False) for request in turn]
    return mixed[:250]


@pytest.mark.parametrize("policy", GOLDEN)
def test_hits(policy, trace) -> None:
    simulator = Simulator(Capacity(slots=12), *parse_policy(policy).build(CURRENCY), CURRENCY)
    hits = sum(simulator.serve(request).hit_tokens for request in trace)
    simulator.finish()
    assert hits == GOLDEN[policy]
