"""States that an open session refers to go after all others; among either the policy chooses."""

from __future__ import annotations

from array import array

import engineless_cache
import pytest
from engineless_cache import Driver
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode
from tree_nodes import nodes_of

from sglang_hooks.radix.tree_core import depth_of


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """A policy that gives up the deepest state first, here the latest: the opposite of stock's order."""
    engineless_cache.publish_settings()
    made = Driver("marconi", slots=24, tokens=4_000, context_tokens=256, enable_session_radix_cache=True)
    for name in ("scores", "floors", "score"):
        monkeypatch.setattr(
            made.cache.mamba.runtime.eviction,
            name,
            lambda table, rows, _tick: -table.depth[rows].astype(float),
        )
    return made


def serve(driver: Driver, number: int, session: str | None = None) -> None:
    """A prompt of its own, longer than those before, and two states: at its end, and after the answer."""
    req = driver.match(number, array("q", [1_000 + number] * (20 + 10 * number)), 4)
    if session is not None:
        req.session_id = session
        req.session_generation = driver.cache.session_refs.ensure_session_generation(session)
    driver.prefill(req)
    driver.finish(req, array("q", [7, 8, 9, 10]))


def states(driver: Driver) -> list[UnifiedTreeNode]:
    """The nodes that have one, deepest first."""
    nodes = nodes_of(driver.cache)
    held = [node for node in nodes if node.component_data[ComponentType.MAMBA].value is not None]
    return sorted(held, key=depth_of, reverse=True)


def evict(driver: Driver) -> UnifiedTreeNode:
    before = states(driver)
    assert driver.cache.evict_for_alloc(EvictParams(num_tokens=0, mamba_num=1)).mamba_num_evicted == 1
    (gone,) = set(before) - set(states(driver))
    return gone


def is_referenced(node: UnifiedTreeNode) -> bool:
    return node.component_data[ComponentType.MAMBA].session_ref > 0


def test_a_session_keeps_its_states_longest(driver: Driver) -> None:
    for number in range(6):
        serve(driver, number, "open" if number % 2 else None)
    kept = [node for node in states(driver) if is_referenced(node)]
    others = [node for node in states(driver) if not is_referenced(node)]
    assert (len(kept), len(others)) == (3, 10), "a session refers to the last state of each path"
    assert [evict(driver) for _ in range(13)] == others + kept
    driver.cache.sanity_check()
    assert driver.cache.slot_census()["unaccounted"] == 0


def test_a_session_that_ends_keeps_nothing(driver: Driver) -> None:
    for number in range(4):
        serve(driver, number, "ends" if number % 2 else None)
    driver.cache.session_refs.release_radix_session("ends")
    wanted = states(driver)
    assert [evict(driver) for _ in range(9)] == wanted


def test_new_states_take_the_slots_of_what_no_session_refers_to(driver: Driver) -> None:
    serve(driver, 9, "open")
    (kept,) = (node for node in states(driver) if is_referenced(node))
    for number in range(30):
        serve(driver, number % 9)
    assert kept in states(driver), "the deepest of all, and yet the last to go"
    driver.cache.reset()
    assert not driver.cache.mamba.referenced
