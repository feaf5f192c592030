"""The component between SGLang's tree and the policy: matches, locks and splits as the policy's table has them."""

from __future__ import annotations

from array import array

import engineless_cache
import pytest
from engineless_cache import Driver
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.sampling.sampling_params import SamplingParams
from tree_nodes import nodes_of

from marconi_ext.policies.table.tree_rows import row_of
from sglang_hooks.radix.node_states import holds_state
from sglang_hooks.radix.tree_core import depth_of

PROMPT, ANSWER = array("q", range(100, 140)), array("q", [7, 8, 9, 10])


@pytest.fixture
def driver() -> Driver:
    engineless_cache.publish_settings()
    return Driver("marconi", slots=8, tokens=4_000, context_tokens=256)


def test_a_locked_state_is_pinned_until_its_request_ends(driver: Driver) -> None:
    driver.serve(0, PROMPT, ANSWER)
    table = driver.cache.mamba.runtime.table
    assert not table.pins.any()
    req = driver.match(1, PROMPT, len(ANSWER))
    served = driver.cache.tree_core.node_by_id(req.last_node)
    assert depth_of(served) == req.prefix_len == len(PROMPT) - 1
    assert table.pins[row_of(served)] == 1
    driver.prefill(req)
    driver.finish(req, ANSWER)
    assert not table.pins.any()


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
