"""What another policy was served that this one wasn't, put down to the states that went."""

import numpy as np
import pytest

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.registry import parse_policy
from marconi_ext.simulator.against import compare
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.clairvoyant import Clairvoyant, Future
from marconi_ext.simulator.simulator import Simulator
from marconi_ext.traces import Request, synthetic


def prompt(number: int, turn: int, tokens: int) -> Request:
    """Of conversation `number`, whose prompts extend each other; no answers."""
    ids = np.arange(tokens, dtype=np.int32) + 100_000 * number
    return Request(str(number), turn, 0.0, ids, ids[:0])


def simulator(policy: str, slots: int, requests: list[Request]) -> Simulator:
    admission, eviction = parse_policy("selective+lru" if policy == "clairvoyant" else policy).build(
        Currency()
    )
    if policy == "clairvoyant":
        eviction = Clairvoyant(Currency(), Future(requests))
    return Simulator(Capacity(slots=slots), admission, eviction, Currency())


def test_by_hand() -> None:
    """One slot. LRU drops conversation 1 for 2, then is asked for 1; the clairvoyant refuses 2."""
    requests = [prompt(1, 0, 500), prompt(2, 0, 300), prompt(1, 1, 700)]
    found = compare(requests, *(simulator(name, 1, requests) for name in ("selective+lru", "clairvoyant")))
    assert found["losses"] == [
        {
            "fate": "evicted",
            "role": "tail",
            "label": "–",
            "requests": 1,
            "share": 499 / 1500,
            "depth": 499.0,
            "age": 1.0,
            "waited": 1.0,
        }
    ]
    assert (found["behind"], found["ahead"]) == (499 / 1500, 0.0)


@pytest.mark.parametrize("policy", ["gittins", "seglen"])
def test_losses_sum_up_to_what_is_missing(policy) -> None:
    requests = list(synthetic("tree-search", seed=1, sessions=6))
    found = compare(requests, *(simulator(name, 6, requests) for name in (policy, "clairvoyant")))
    hits = []
    for name in (policy, "clairvoyant"):
        alone = simulator(name, 6, requests)
        hits.append(sum(alone.serve(request).hit_tokens for request in requests))
    prompts = sum(len(request.input_ids) for request in requests)
    assert found["behind"] - found["ahead"] == pytest.approx((hits[1] - hits[0]) / prompts)
    assert sum(loss["share"] for loss in found["losses"]) == pytest.approx(found["behind"])
    if policy == "gittins":
        assert any(loss["label"] != "–" for loss in found["losses"])
