"""One definition of first divergence and of avoidable loss: the server's counters say what the replayer works out.

Requests one after another in pools that hold everything, so that no KV has gone; the server's rules are run without
an engine, and each request's counters are compared with the yardstick that `marconi replay` and `demo` use.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.registry import parse_policy
from marconi_ext.results.ideal import IdealCache, split_loss
from marconi_ext.simulator.live_rules import LiveRules
from marconi_ext.traces.request import Request
from marconi_ext.traces.script import Histories, Script, in_order
from marconi_ext.traces.workloads import AgentSizes, FewShotSizes, ForkSizes, agent, few_shot, fork

VOCABULARY = 60  # few, so that branches also lie a few tokens apart by chance


def traffic(seed: int, least_answer: int) -> list[Script]:
    return [
        *agent(AgentSizes(6, 5, 60, (1, 30), (2, 9)), seed, VOCABULARY),
        *few_shot(FewShotSizes(40, 4, (20, 90), (1, 12), (least_answer, 4)), seed + 1, VOCABULARY),
        *fork(ForkSizes(6, 4, 4, 1, 40, (1, 30), (2, 9)), seed + 2, VOCABULARY),
    ]


@pytest.mark.parametrize("policy", ["exact+lru", "exact+ours", "ours"])
@pytest.mark.parametrize("slots", [10_000, 12])
def test_counters_say_what_the_replayer_says(policy: str, slots: int) -> None:
    currency = Currency(linear=1e6, quadratic=10.0)
    rules = LiveRules(slots, 10**7, *parse_policy(policy).build(currency), currency)
    yardstick, found = IdealCache(), Counter()
    # of a prompt that came again with an answer of one token the server saves one state more than the yardstick
    scripts = traffic(7, least_answer=1 if slots > 12 else 2)
    histories, rng = Histories(scripts), np.random.default_rng(3)
    for number, (script, turn) in enumerate(in_order(scripts)):
        prompt = histories.prompt(script, turn)
        answer = rng.integers(0, VOCABULARY, script.turns[turn].answer_tokens).astype(np.int32)
        histories.answered(script, prompt, answer)
        served = rules.serve(prompt, answer)
        reusable = yardstick.serve(Request(str(number), 0, float(number), prompt, answer))
        told = split_loss(reusable, served.hit_tokens)
        first = served.lost.get("first_divergence", 0)
        assert (first, sum(served.lost.values()) - first) == (
            told.first_divergence_tokens,
            told.avoidable_tokens,
        ), f"request {number}: {served}, {reusable}"
        found.update(served.lost)
    assert found["first_divergence"] > 0
    assert slots > 12 or found["evicted"] > 0
