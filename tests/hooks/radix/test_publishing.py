"""What of a request enters the tree, and that every slot it held is free, or the tree's, in the end."""

from __future__ import annotations

from array import array

import engineless_cache
import pytest
from engineless_cache import Driver
from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from tree_nodes import nodes_of

from sglang_hooks.node_states import holds_state
from sglang_hooks.radix.tree_core import depth_of

PROMPT, ANSWER = array("q", range(100, 140)), array("q", [7, 8, 9, 10])


@pytest.fixture
def driver() -> Driver:
    engineless_cache.publish_settings()
    return Driver("marconi", slots=20, tokens=4_000, context_tokens=256)


def states(driver: Driver) -> list[int]:
    """Depths of all states, ascending."""
    return sorted(depth_of(node) for node in nodes_of(driver.cache) if holds_state(node))


def assert_all_accounted(driver: Driver) -> None:
    census = driver.cache.slot_census()
    assert census["unaccounted"] == census["held"] == 0 and census["cached"] == len(states(driver))
    kv = driver.cache.kv_census()
    assert kv["free"] + kv["cached"] == kv["pool"]
    assert driver.cache.census.differences() == []


def test_states_are_published_after_the_prefill_and_at_the_end(driver: Driver) -> None:
    """At the prompt's last token but one, and after the answer's last token with KV."""
    req = driver.match(1, PROMPT, len(ANSWER))
    driver.prefill(req)
    assert 39 in states(driver) and 43 not in states(driver)
    driver.finish(req, ANSWER)
    assert {39, 43} <= set(states(driver))
    assert_all_accounted(driver)


def test_a_state_that_the_tree_has_already_gives_its_slot_back(driver: Driver) -> None:
    """Two requests of one prompt run at once: both save its end."""
    both = [driver.match(number, PROMPT, len(ANSWER)) for number in range(2)]
    for req in both:
        driver.prefill(req)
    for req in both:
        driver.finish(req, ANSWER)
    assert driver.cache.mamba.ledger.counters["duplicate"] > 0
    assert len(states(driver)) == len(set(states(driver)))
    assert_all_accounted(driver)


def test_what_was_never_written_is_freed(driver: Driver) -> None:
    """A request that is taken back before its forward pass fills its slots."""
    req = driver.match(1, PROMPT, len(ANSWER))
    ledger = driver.cache.mamba.ledger
    unwritten, ledger.unwritten = ledger.unwritten, lambda _req: []
    driver.prefill(req)
    ledger.unwritten = unwritten
    assert states(driver) == [] and ledger.held_slots > 0
    driver.finish(req, ANSWER, keep=False)
    assert states(driver) == [] and ledger.counters["released_unpublished"] > 0
    assert_all_accounted(driver)


def test_an_answer_ahead_of_its_state_leaves_kv_alone(driver: Driver) -> None:
    """Under overlap the running slot may be one token further than the answer that ended: it stands for no key."""
    req = driver.match(1, PROMPT, len(ANSWER))
    driver.prefill(req)
    before = states(driver)
    end = driver.cache.mamba.prepare_for_caching_req
    driver.cache.mamba.prepare_for_caching_req = lambda req, params, tokens, done: end(
        req, params, tokens - 1, done
    )
    driver.finish(req, ANSWER)
    assert states(driver) == before
    assert driver.cache.mamba.ledger.counters["last_token_misaligned"] == 1
    assert_all_accounted(driver)


def test_a_health_check_saves_nothing(driver: Driver) -> None:
    driver.serve(f"{HEALTH_CHECK_RID_PREFIX}_1", array("q", [5]), array("q", [6]))
    assert states(driver) == [] and driver.cache.mamba.runtime.tick == 0
    assert_all_accounted(driver)


@pytest.mark.parametrize("sends", [True, False], ids=["prefill server", "any other"])
def test_what_a_prefill_server_sends_is_not_freed(driver: Driver, sends: bool) -> None:
    """A chunk without a state is sent on; before the next is through, another request has brought the same tokens."""
    driver.cache.sends_kv = sends
    chunked, other = (driver.match(number, PROMPT, len(ANSWER)) for number in range(2))
    chunked.extend_end = 20
    driver.prefill(chunked)
    assert 20 not in states(driver)
    row = driver.cache.req_to_token_pool.req_to_token[chunked.kv.req_pool_idx]
    sent = row[:20].clone()
    driver.prefill(other)
    chunked.extend_end = len(PROMPT)
    driver.prefill(chunked)
    assert sends == bool((row[:20] == sent).all())
    for req in (chunked, other):
        driver.finish(req, ANSWER)
    assert_all_accounted(driver)
