"""One cell's report: what was lost sums up to what was missed, and yardsticks do what they say."""

import pytest

from marconi_ext.errors import BadInputError
from marconi_ext.policies.registry import parse_policy
from marconi_ext.profiles import ModelProfile, load_profile
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.cell import Options, currencies, run_cell
from marconi_ext.simulator.workload import Workload, load_workload
from marconi_ext.traces import synthetic

TIGHT = Capacity(slots=8, tokens=15_000)


@pytest.fixture(scope="module")
def workload() -> Workload:
    return load_workload("agent", 0, synthetic("agent", seed=0, sessions=12, turns=4))


@pytest.fixture(scope="module")
def profile() -> ModelProfile:
    return load_profile("nemotron-h-8b")


@pytest.mark.parametrize("policy", ["lru", "gittins", "sglang", "clairvoyant", "law", "best-static"])
def test_hits_and_losses_sum_up_to_the_ideal(policy: str, workload: Workload, profile: ModelProfile) -> None:
    cell = run_cell(workload, parse_policy(policy), TIGHT, profile, Options(per_request=True))
    missed = cell["state_limited_loss"] + cell["kv_limited_loss"]
    assert cell["token_hit_rate"] + missed == pytest.approx(cell["ideal_hit_rate"], rel=1e-12)
    assert sum(cell["causes"].values()) == pytest.approx(cell["state_limited_loss"], rel=1e-12)
    assert sum(cell["hits"]) == cell["hit_tokens"] > 0 < cell["state_limited_loss"]
    assert cell["prompt_tokens"] == workload.prompt_tokens.sum() and cell["requests"] == 48


def test_the_best_constant_is_the_best_of_those_tried(workload: Workload, profile: ModelProfile) -> None:
    best = run_cell(workload, parse_policy("best-static"), TIGHT, profile, Options())
    tried = best["parameters"]["token_hit_rate_by_alpha"]
    assert len(tried) == 21
    for alpha in ("0.0", "0.7", "2.0"):
        name = parse_policy(f"judicious+flop-aware:{alpha}")
        one = run_cell(workload, name, TIGHT, profile, Options())
        assert tried[alpha] == one["token_hit_rate"] and best["flops_saved"] >= one["flops_saved"]


def test_in_a_pool_of_slots_a_policy_counts_no_kv(profile: ModelProfile) -> None:
    counted, by_slots = currencies(profile, Options(), TIGHT)
    assert counted.kv_bytes_per_token > 0 == by_slots.kv_bytes_per_token
    assert by_slots.state_bytes == counted.state_bytes
    assert currencies(profile, Options(), Capacity(bytes=10**9)) == (counted, counted)


@pytest.mark.parametrize(
    ("model", "capacity"), [("nemotron-h-8b", Capacity(bytes=10**9)), ("paper-7b", TIGHT)]
)
def test_the_artifact_runs_as_it_was_published_alone(
    model: str, capacity: Capacity, workload: Workload
) -> None:
    with pytest.raises(BadInputError, match="paper-7b and a --capacity in bytes"):
        run_cell(workload, parse_policy("artifact-lru"), capacity, load_profile(model), Options())
