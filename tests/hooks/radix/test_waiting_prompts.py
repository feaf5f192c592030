"""SGLang renews the stamps of waiting requests' prefixes now and then; that alone must change nothing in our tree."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator

import engineless_cache
import numpy as np
import pytest
from engineless_cache import Driver
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.mem_cache.common import touch_waiting_prefix
from sglang.srt.sampling.sampling_params import SamplingParams
from tree_nodes import nodes_of

from marconi_ext.policies.registry import parse_policy
from marconi_ext.policies.table.checkpoints import Kind
from marconi_ext.simulator.live_rules import LiveRules
from sglang_hooks.radix.tree_core import depth_of

SIZES = {"slots": 14, "tokens": 900, "context_tokens": 400}


@pytest.fixture(scope="module", autouse=True)
def settings() -> None:
    engineless_cache.publish_settings()


def traffic(seed: int, requests: int) -> Iterator[tuple[array, array]]:
    """(prompt, answer), many of them sent again, as they were or with more behind the answer."""
    rng = random.Random(seed)
    sent: list[tuple[array, array]] = []
    for _ in range(requests):
        if sent and rng.random() < 0.4:
            prompt, answer = rng.choice(sent[-8:])
        else:
            old = sum(rng.choice(sent[-8:]), array("q")) if sent and rng.random() < 0.6 else array("q")
            prompt = old[:250] + array("q", rng.choices(range(50), k=rng.randrange(5, 60)))
            answer = array("q", rng.choices(range(50), k=rng.randrange(2, 12)))
        sent.append((prompt, answer))
        yield prompt, answer


def wait(driver: Driver, prompt: array) -> None:
    """What SGLang does with a waiting request on every 32nd pass of its scheduler."""
    touch_waiting_prefix(Req("waits", "", prompt, SamplingParams()), driver.cache)


def test_a_prompt_that_waits_again_splits_no_edge() -> None:
    driver = Driver("marconi", **SIZES)
    prompt, answer = array("q", range(50)), array("q", range(100, 110))
    driver.serve(0, prompt, answer)
    ends = [depth_of(node) for node in nodes_of(driver.cache)]
    assert ends[-2:] == [49, 59], "the prompt's end, and the answer's last token with KV"
    wait(driver, prompt)
    assert [depth_of(node) for node in nodes_of(driver.cache)] == ends


@pytest.mark.parametrize("seed", range(4))
def test_live_equals_simulated_whoever_waits(seed: int) -> None:
    driver = Driver("marconi", **SIZES)
    mamba = driver.cache.mamba
    currency = mamba.runtime.currency
    kinds = [Kind(kind) for kind in mamba.serving.kinds]
    built = parse_policy(mamba.config.policy).build(currency)
    rules = LiveRules(SIZES["slots"], SIZES["tokens"], *built, currency, kinds)
    for number, (prompt, answer) in enumerate(traffic(seed, 300)):
        wait(driver, prompt)
        driver.serve(number, prompt, answer)
        served = rules.serve(np.asarray(prompt, np.int32), np.asarray(answer, np.int32))
        assert driver.hit_tokens == served.hit_tokens, f"request {number}"
        held = driver.cache.slot_census()["cached"], driver.cache.kv_census()["cached"]
        assert held == (rules.tree.num_states, rules.tree.num_tokens), f"after request {number}"
    assert mamba.runtime.counts["state_evictions"] > 50, "the pools were never full"
