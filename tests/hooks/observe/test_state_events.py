"""Both streams say what SGLang's tree holds, after splits, evictions, aborts and flushes, at pages of 1 and 16.

The real cache without an engine; the real consumers, which know nothing of the tree.
"""

from __future__ import annotations

import random
from array import array
from typing import Any

import engineless_cache
import msgspec
import numpy as np
import pytest
from engineless_cache import Driver
from sglang.srt.mem_cache.events import KVCacheEventRecorder
from tree_nodes import nodes_of

from marconi_ext.routing.block_hashes import block_hashes
from marconi_ext.routing.state_index import StateIndex
from sglang_hooks.node_states import holds_state
from sglang_hooks.observe.state_events import ResumableRecorder, StateEvents, StateRemoved, StateStored

SIZES = {"context_tokens": 512, "requests": 6}


class Wire:
    """A publisher whose reader gets what would go over the wire."""

    def __init__(self, index: StateIndex) -> None:
        self._index = index

    def publish(self, batch: Any) -> None:
        _ts, events, _rank = msgspec.msgpack.decode(msgspec.msgpack.encode(batch))
        self._index.apply(events)


class Blocks:
    """A reader of KV events, as those that exist: blocks by hash."""

    def __init__(self) -> None:
        self.held: set[int] = set()

    def apply(self, events: list[Any]) -> None:
        for event in map(msgspec.to_builtins, events):
            if event["type"] == "BlockStored":
                parent = event["parent_block_hash"]
                assert parent is None or parent in self.held, "a block without the one above"
                assert not self.held & set(event["block_hashes"]), "stored twice"
                self.held.update(event["block_hashes"])
            elif event["type"] == "BlockRemoved":
                assert self.held >= set(event["block_hashes"]), "removed, but never stored"
                self.held.difference_update(event["block_hashes"])
            else:
                self.held.clear()


@pytest.fixture(scope="module", autouse=True)
def settings() -> None:
    engineless_cache.publish_settings()


def test_state_events_have_no_place_for_token_ids_or_keys() -> None:
    """A hash names the block; what was asked, and under which key or salt, stays in the server."""
    assert StateStored.__struct_fields__ == ("block_hash", "depth_tokens", "kind", "medium")
    assert StateRemoved.__struct_fields__ == ("block_hash", "medium")


def driver_of(page: int, slots: int, tokens: int) -> Driver:
    return Driver("marconi", page_size=page, slots=slots, tokens=tokens, **SIZES)


def play(driver: Driver, seed: int, steps: int, check: Any) -> list[array]:
    """Random requests that share prefixes, some of them aborted, and now and then a flush."""
    rng = random.Random(seed)
    histories = [array("q", rng.choices(range(30), k=60))]
    for number in range(steps):
        old = rng.choice(histories)
        prompt = old[: rng.randrange(1, len(old) + 1)] + array("q", rng.choices(range(30), k=40))
        prompt, output = prompt[:400], array("q", rng.choices(range(30), k=rng.randrange(2, 30)))
        req = driver.match(number, prompt, len(output))
        driver.prefill(req)
        keep = rng.random() < 0.85
        driver.finish(req, output, keep=keep)
        if keep:
            histories.append(prompt + output)
        if rng.random() < 0.02:
            driver.cache.reset()
            driver.cache.req_to_token_pool.clear()
            driver.cache.token_to_kv_pool_allocator.clear()
        check(histories)
    return histories


def depth_in_tree(driver: Driver, prompt: array) -> int:
    """The true depth: a match that SGLang itself makes, without copying a state."""
    core, page = driver.cache.tree_core, driver.cache.page_size
    node, depth, best = core.root_node, 0, 0
    mamba = driver.cache.mamba.component_type
    while depth < len(prompt):
        key = prompt[depth : depth + page]
        child = node.children.get(key[0] if page == 1 else tuple(key))
        if child is None or array("q", child.key.token_ids) != prompt[depth : depth + len(child.key)]:
            return best
        node, depth = child, depth + len(child.key)
        if node.component_data[mamba].value is not None:
            best = depth
    return best


@pytest.mark.parametrize("page", [1, 16])
@pytest.mark.parametrize(("slots", "tokens"), [(60, 40_000), (12, 4_000), (40, 1_600)])
def test_states_are_what_the_tree_holds(page: int, slots: int, tokens: int) -> None:
    driver, index = driver_of(page, slots, tokens), StateIndex()
    events = driver.cache.mamba.events = StateEvents(driver.cache, Wire(index))
    depths = []

    def check(histories: list[array]) -> None:
        events.flush()
        mamba = driver.cache.mamba.component_type
        held = [node for node in nodes_of(driver.cache) if node.component_data[mamba].value is not None]
        assert len(index) == len(held)
        for prompt in histories[-5:]:
            said = index.resumable_tokens(block_hashes(np.array(prompt[:-1]), page))
            assert said == depth_in_tree(driver, prompt[:-1])
            depths.append(said)

    play(driver, 1, 150, check)
    assert len(set(depths)) > 8, "too little was resumed for the comparison to mean much"


@pytest.mark.parametrize("page", [1, 16])
@pytest.mark.parametrize(("slots", "tokens"), [(60, 40_000), (12, 4_000), (40, 1_600)])
def test_resumable_blocks_are_those_that_a_state_serves(page: int, slots: int, tokens: int) -> None:
    driver, blocks = driver_of(page, slots, tokens), Blocks()
    core, mamba = driver.cache.tree_core, driver.cache.mamba.component_type
    stock = KVCacheEventRecorder(enabled=True, page_size=page)
    recorder = core.kv_events = driver.cache.mamba.events = ResumableRecorder(stock)
    sizes = []

    def check(histories: list[array]) -> None:
        blocks.apply(core.take_events())
        nodes = nodes_of(driver.cache)
        recorder.resumable.check((node, node.component_data[mamba].value is not None) for node in nodes)
        assert len(blocks.held) == sum(len(n.key) for n in nodes if n in recorder.resumable) // page
        sizes.append((len(blocks.held) * page, sum(len(node.key) for node in nodes)))
        for prompt in histories[-5:]:
            chain = list(block_hashes(np.array(prompt[:-1]), page))
            stored = next((i for i, block in enumerate(chain) if block not in blocks.held), len(chain))
            depth = depth_in_tree(driver, prompt[:-1])
            assert stored * page >= depth, "a state that the stream doesn't tell of"

    play(driver, 2, 150, check)
    assert any(said < held for said, held in sizes), "every block was resumable: nothing was tested"


def test_a_state_that_goes_in_silence_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, index = driver_of(1, 12, 4_000), StateIndex()
    events = driver.cache.mamba.events = StateEvents(driver.cache, Wire(index))
    sync = StateEvents.sync
    monkeypatch.setattr(StateEvents, "sync", lambda self, node: holds_state(node) and sync(self, node))
    wrong = []

    def check(histories: list[array]) -> None:
        events.flush()
        prompt = histories[0]
        said = index.resumable_tokens(block_hashes(np.array(prompt[:-1]), 1))
        wrong.append(said != depth_in_tree(driver, prompt[:-1]) or len(index) > 12)

    play(driver, 1, 150, check)
    assert any(wrong)
