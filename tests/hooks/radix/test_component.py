"""The component between SGLang's tree and the policy: matches, locks and splits as the policy's table has them."""

from __future__ import annotations

from array import array

import engineless_cache
import pytest
from engineless_cache import Driver
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.common import release_kv_cache
from sglang.srt.sampling.sampling_params import SamplingParams
from tree_nodes import nodes_of

from marconi_ext.policies.table.tree_rows import row_of
from sglang_hooks.node_states import holds_state
from sglang_hooks.radix.tree_core import depth_of

PROMPT, ANSWER = array("q", range(100, 140)), array("q", [7, 8, 9, 10])


@pytest.fixture
def driver() -> Driver:
    engineless_cache.publish_settings()
    return Driver("marconi", slots=8, tokens=4_000, context_tokens=256)


def test_a_state_is_pinned_until_it_has_been_copied(driver: Driver) -> None:
    driver.serve(0, PROMPT, ANSWER)
    table = driver.cache.mamba.runtime.table
    assert not table.pins.any()
    req = driver.match(1, PROMPT, len(ANSWER))
    served = driver.cache.tree_core.node_by_id(req.last_node)
    assert depth_of(served) == req.prefix_len == len(PROMPT) - 1
    assert table.pins[row_of(served)] == 1
    driver.prefill(req)
    assert not table.pins.any() and driver.cache.mamba_protected_size() == 0
    assert driver.cache.full_protected_size() == len(PROMPT) - 1
    driver.finish(req, ANSWER)
    assert driver.cache.full_protected_size() == 0 and driver.cache.census.differences() == []


def run_without_states(driver: Driver, number: int) -> Req:
    """A request that is decoded when all states in the tree have gone, and all KV that may."""
    cache = driver.cache
    req = driver.match(number, PROMPT, len(ANSWER))
    driver.prefill(req)
    cache.evict_for_alloc(EvictParams(num_tokens=0, mamba_num=100))
    cache.evict_for_alloc(EvictParams(num_tokens=10_000))
    assert not any(holds_state(node) for node in nodes_of(cache))
    assert cache.census.differences() == []
    return req


@pytest.mark.parametrize("served", [0, 1])
def test_running_requests_keep_their_kv_and_no_state(driver: Driver, served: int) -> None:
    """Whether a state was saved for it just now, or its prompt had been served before."""
    for number in range(served):
        driver.serve(number, PROMPT, ANSWER)
    req = run_without_states(driver, served)
    cache = driver.cache
    row = cache.req_to_token_pool.req_to_token[req.kv.req_pool_idx, : len(PROMPT) - 1]
    held = cache.tree_core.collect_full_device_indices(req.lock.node, cache.tree_core.root_node.id)
    assert row.tolist() == held.tolist() and cache.kv_census()["cached"] == len(PROMPT) - 1
    driver.finish(req, ANSWER)
    driver.serve(9, PROMPT + ANSWER, ANSWER)
    assert driver.hit_tokens == len(PROMPT) + len(ANSWER) - 1
    assert cache.slot_census()["unaccounted"] == 0 and cache.census.differences() == []


def test_a_request_taken_back_looks_for_a_state_again(driver: Driver) -> None:
    """A retraction: that which it started from may have gone meanwhile."""
    driver.serve(0, PROMPT, ANSWER)
    req = run_without_states(driver, 1)
    cache = driver.cache
    release_kv_cache(req, cache, checkpoint=False)
    req.reset_for_retract()
    req.init_next_round_input(cache)
    assert req.prefix_len == 0
    cache.evict_for_alloc(EvictParams(num_tokens=10_000))
    assert cache.kv_census()["cached"] == 0 and cache.slot_census()["unaccounted"] == 0


def test_a_split_leaves_the_state_at_the_lower_end(driver: Driver) -> None:
    driver.serve(0, PROMPT, ANSWER)
    before = {depth_of(node): row_of(node) for node in nodes_of(driver.cache) if holds_state(node)}
    other = PROMPT[:20] + array("q", [1, 2, 3])
    driver.match(1, other, 1)
    (upper,) = (node for node in nodes_of(driver.cache) if depth_of(node) == 20)
    assert not holds_state(upper)
    after = {depth_of(node): row_of(node) for node in nodes_of(driver.cache) if holds_state(node)}
    assert after == before
    assert driver.cache.census.differences() == []


def test_a_second_visit_saves_the_branch(driver: Driver) -> None:
    """And the third starts from it."""
    driver.serve(0, PROMPT, ANSWER)
    driver.serve(1, PROMPT[:20] + array("q", [1] * 20), ANSWER)
    assert driver.hit_tokens < 20
    assert 20 in [depth_of(node) for node in nodes_of(driver.cache) if holds_state(node)]
    driver.serve(2, PROMPT[:20] + array("q", [2] * 20), ANSWER)
    assert driver.hit_tokens == 20


def test_no_room_for_a_copy_is_a_miss(driver: Driver) -> None:
    """All slots run or are locked: SGLang's own match would end the server."""
    driver.serve(0, PROMPT, ANSWER)
    allocator = driver.cache.req_to_token_pool.mamba_allocator
    locks = [driver.match(1, PROMPT, 1)]
    for node in nodes_of(driver.cache):
        if holds_state(node):
            driver.cache.inc_lock_ref(node.id)
    taken = allocator.alloc(allocator.available_size())
    late = Req("late", "", PROMPT, SamplingParams(temperature=0, max_new_tokens=1))
    late.init_next_round_input(driver.cache)
    assert late.prefix_len == 0 and locks[0].prefix_len == len(PROMPT) - 1
    allocator.free(taken)
    late.init_next_round_input(driver.cache)
    assert late.prefix_len == len(PROMPT) - 1
