"""The replay of all α at once, against the simulator on whole trees, α by α."""

import pickle

import numpy as np
import pytest

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.fixed_rules import FlopAware
from marconi_ext.policies.paper.alpha_replay import ALPHAS, saved_flops, tune_alpha
from marconi_ext.policies.registry import parse_policy
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.simulator import Simulator
from marconi_ext.traces import Request, synthetic

CURRENCY = Currency(linear=1e9, quadratic=1e5)
SLOTS = 8


def flops_on_trees(trace: list[Request], alpha: float) -> float:
    admission, _ = parse_policy("marconi").build(CURRENCY)
    simulator = Simulator(
        Capacity(slots=SLOTS), admission, FlopAware(CURRENCY, alpha, max_fanout=1), CURRENCY
    )
    hits = np.array([simulator.serve(request).hit_tokens for request in trace])
    return float(CURRENCY.worth(hits, np.zeros(1)).sum())


@pytest.fixture(scope="module")
def tuned():
    """A `marconi` whose window is full, waiting for its α, and the requests of that window."""
    trace = list(synthetic("swe-agent", seed=0, sessions=40))
    simulator = Simulator(Capacity(slots=SLOTS), *parse_policy("marconi").build(CURRENCY), CURRENCY)
    rule = simulator.eviction
    rule.background = True
    for served, request in enumerate(trace, start=1):
        simulator.serve(request)
        if rule.due:
            return rule, trace[:served]
    raise AssertionError("the window never filled")


def test_one_pass_saves_what_whole_trees_save(tuned) -> None:
    rule, window = tuned
    saved = saved_flops(rule.snapshot())
    for i in (0, 4, 8, 20):
        assert saved[i] == pytest.approx(flops_on_trees(window, float(ALPHAS[i])), rel=0.01)


def test_a_snapshot_travels_and_any_process_finds_the_same_alpha(tuned) -> None:
    rule, _ = tuned
    log = rule.snapshot()
    alpha = tune_alpha(pickle.loads(pickle.dumps(log)))
    assert alpha == tune_alpha(log) == float(ALPHAS[saved_flops(log).argmax()])
    assert rule.alpha == 0.0 and rule.due  # nothing changes until it is applied
    rule.apply(alpha)
    assert rule.alpha == alpha and not rule.due and rule.parameters()["tuned"] == 1.0
