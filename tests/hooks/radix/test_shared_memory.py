"""One buffer of bytes for KV and states: SGLang's own allocator on the CPU, compared with the rules in simulation."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator

import engineless_cache
import numpy as np
import pytest
from engineless_cache import Driver
from sglang.srt.mem_cache.base_prefix_cache import EvictParams

from marconi_ext.policies.registry import parse_policy
from marconi_ext.policies.table.checkpoints import Kind
from marconi_ext.simulator.live_rules import LiveRules
from sglang_hooks.radix.prefill_budget import SharedPrefillBudget

SIZES = {"context_tokens": 1_024, "requests": 2, "state_size": 32}  # a state costs as much as 67 tokens


@pytest.fixture(scope="module", autouse=True)
def settings() -> None:
    engineless_cache.publish_settings()


def traffic(seed: int, requests: int) -> Iterator[tuple[array, array]]:
    rng = random.Random(seed)
    histories = [array("q", rng.choices(range(50), k=200))]
    for _ in range(requests):
        old = rng.choice(histories[-12:])
        prompt = (old[: rng.randrange(1, len(old) + 1)] + array("q", rng.choices(range(50), k=20)))[:600]
        answer = array("q", rng.choices(range(50), k=rng.randrange(2, 40)))
        histories.append(prompt + answer)
        yield prompt, answer


def rules_of(driver: Driver, policy: str) -> LiveRules:
    mamba, shared = driver.cache.mamba, driver.cache.shared
    currency = mamba.runtime.currency
    admission, eviction = parse_policy(policy).build(currency)
    kinds = [Kind(kind) for kind in mamba.serving.kinds]
    return LiveRules(0, 0, admission, eviction, currency, kinds, shared_bytes=shared.total_bytes)


def holds(driver: Driver) -> tuple[int, int]:
    return driver.cache.slot_census()["cached"], driver.cache.kv_census()["cached"]


@pytest.mark.parametrize("policy", ["gittins", "lru", "seglen", "flop-aware:1", "gittins-basic"])
@pytest.mark.parametrize("total_bytes", [60_000, 150_000])
def test_live_equals_simulated(policy: str, total_bytes: int) -> None:
    """Each request finds what it finds in simulation, and afterwards both hold as many states and tokens."""
    driver = Driver("marconi", policy=policy, shared_bytes=total_bytes, **SIZES)
    rules = rules_of(driver, policy)
    evictions = 0
    for number, (prompt, answer) in enumerate(traffic(7, 150)):
        driver.serve(number, prompt, answer)
        served = rules.serve(np.asarray(prompt, np.int32), np.asarray(answer, np.int32))
        assert driver.hit_tokens == served.hit_tokens, f"request {number}"
        assert holds(driver) == (rules.tree.num_states, rules.tree.num_tokens), f"after request {number}"
        assert not driver.cache.token_to_kv_pool_allocator.verify_byte_accounting()
        driver.cache.mamba.runtime.table.check()
        evictions = driver.cache.mamba.runtime.counts["state_evictions"]
    rules.check()
    assert evictions > 50, "the buffer was never full"


@pytest.mark.parametrize("page_size", [1, 16])
def test_all_can_go(page_size: int) -> None:
    driver = Driver("marconi", shared_bytes=100_000, page_size=page_size, **SIZES)
    cache = driver.cache
    empty = cache.shared.available()
    for number, (prompt, answer) in enumerate(traffic(3, 120)):
        driver.serve(number, prompt, answer)
        assert cache.slot_census()["unaccounted"] == 0
    budget = SharedPrefillBudget(cache.token_to_kv_pool_allocator, cache)
    assert abs(budget.remaining_total - empty[0]) <= page_size, "what can go is room for KV, states included"
    assert cache.reclaimable_slots() >= empty[1] - 2
    cache.evict_for_alloc(EvictParams(num_tokens=empty[0] - cache.shared.available()[0]))
    assert cache.shared.available() == empty and holds(driver) == (0, 0)
    assert cache.shared.missing_bytes(empty[0], 0) == 0 < cache.shared.missing_bytes(empty[0] + 1, 0)


def test_either_kind_makes_room_for_the_other() -> None:
    driver = Driver("marconi", policy="exact+lru", shared_bytes=100_000, **SIZES)
    cache = driver.cache
    for number in range(30):
        driver.serve(number, array("q", range(1_000 * number, 1_000 * number + 300)), array("q", [1, 2]))
    states = cache.shared.available()[1]
    asked = states + 8
    cache.evict_for_alloc(EvictParams(num_tokens=0, mamba_num=8))
    assert cache.shared.available()[1] >= asked
    slots = cache.req_to_token_pool.mamba_allocator.alloc(asked)
    assert slots is not None, "room that was promised must be there"
    cache.evict_for_alloc(EvictParams(num_tokens=500))
    assert cache.token_to_kv_pool_allocator.alloc(500) is not None
