"""The dump describes the tree by hand below, a page at a time, and is only there while somebody asked for it."""

import json
from array import array
from types import SimpleNamespace
from typing import Any

import engineless_cache
import pytest
from engineless_cache import Driver
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode
from tree_nodes import nodes_of

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.fixed_rules import Lru
from marconi_ext.policies.runtime import PolicyRuntime
from marconi_ext.policies.table.checkpoints import Kind
from marconi_ext.policies.table.tree_rows import TreeRecords
from marconi_ext.watch.dumped_tree import DumpedTree
from marconi_ext.watch.sealed_tokens import KEY_ARGUMENTS, NEXT, OFF, SHAPE, TREE_ARGUMENT, WITH_TOKENS, Key
from sglang_hooks.observe import tree_dump
from sglang_hooks.observe.tree_dump import TreeDumps, TreeWalk


def node(parent: UnifiedTreeNode | None, tokens: list[int]) -> UnifiedTreeNode:
    made = UnifiedTreeNode((ComponentType.FULL, ComponentType.MAMBA))
    made.parent, made.key = parent, RadixKey(array("q", tokens))
    made.component_data[ComponentType.FULL].value = object()
    if parent is not None:
        parent.children[tokens[0]] = made
    return made


def with_key(key: Key) -> dict[str, int]:
    return {TREE_ARGUMENT: WITH_TOKENS, **dict(zip(KEY_ARGUMENTS, (key.high, key.low), strict=True))}


def dump(cache: Any, key: Key | None = None) -> dict[str, Any]:
    """All pages, joined as `marconi tree` does."""
    walk = TreeWalk(cache, 1, key)
    joined = DumpedTree(walk.turn(), key)
    assert joined.add(walk.page)
    while walk.page["left"]:
        assert joined.add(json.loads(json.dumps(walk.turn())))
    return joined.whole()


@pytest.fixture
def cache() -> Any:
    """root → [7, 8, 9] (branch) → [1, 2] (evicted prompt end), [5] (last token), all of tick 4; now is tick 6."""
    runtime = PolicyRuntime(None, Lru(), Currency())
    records = TreeRecords(runtime, lambda node: len(node.key))
    root = node(None, [])
    shared = node(root, [7, 8, 9])
    gone, last = node(shared, [1, 2]), node(shared, [5])
    runtime.tick = 4
    for held, depth, kind in (
        (shared, 3, Kind.BRANCH),
        (gone, 5, Kind.PROMPT_END),
        (last, 4, Kind.LAST_TOKEN),
    ):
        runtime.saved(records.record(held, depth, kind))
        held.component_data[ComponentType.MAMBA].value = object()
    runtime.evicted(gone.record)
    gone.component_data[ComponentType.MAMBA].value = None
    last.component_data[ComponentType.MAMBA].lock_ref = 1
    runtime.tick = 6
    arena = {made.id: made for made in (root, shared, gone, last)}
    core = SimpleNamespace(nodes=arena.values, holds=lambda node: arena.get(node.id) is node)
    return SimpleNamespace(tree_core=core, mamba=SimpleNamespace(runtime=runtime), page_size=1)


def test_nodes_by_hand(cache: Any) -> None:
    nodes = dump(cache)["nodes"]
    by_end = {(n["depth_tokens"], n["edge_tokens"]): n for n in nodes}
    assert len(nodes) == 4 and not any("tokens" in n for n in nodes)
    root, shared, gone, last = by_end[0, 0], by_end[3, 3], by_end[5, 2], by_end[4, 1]
    assert root["parent"] is None and shared["parent"] == root["id"] and gone["parent"] == shared["id"]
    assert (shared["kind"], shared["state"], shared["age_ticks"]) == ("branch", "device", 2)
    assert (gone["kind"], gone["state"], gone["kv"]) == ("prompt-end", None, "device")
    assert gone["score"] is root["score"] is None and shared["score"] == last["score"] is not None
    assert (last["kind"], last["state_locks"]) == ("last-token", 1)


def test_token_ids_only_where_asked_for_and_to_whoever_asked(cache: Any) -> None:
    key, other = Key.draw(), Key.draw()
    tokens = [n.get("tokens") for n in dump(cache, key)["nodes"]]
    assert sorted(filter(None, tokens)) == [[1, 2], [5], [7, 8, 9]]
    page = TreeWalk(cache, 1, key).turn()
    overheard = DumpedTree(page, other)
    assert overheard.add(page)
    assert not any(n.get("tokens") in tokens[1:] for n in overheard.whole()["nodes"])


def test_armed_until_ended_or_too_old(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 10.0
    monkeypatch.setattr(tree_dump.time, "monotonic", lambda: now_s)
    dumps = TreeDumps(expose_tokens=True)
    assert dumps.section(cache) == {}
    assert not dumps.ask({TREE_ARGUMENT: 9}) and not dumps.ask({TREE_ARGUMENT: NEXT})
    assert dumps.ask({TREE_ARGUMENT: SHAPE})
    first = dumps.section(cache)["tree"]
    assert dumps.section(cache)["tree"] is first  # other clients poll as well, and take nothing away
    assert dumps.ask({TREE_ARGUMENT: NEXT}) and dumps.section(cache)["tree"]["nodes"] == []
    assert dumps.ask({TREE_ARGUMENT: OFF}) and dumps.section(cache) == {}
    dumps.ask({TREE_ARGUMENT: SHAPE})
    now_s += tree_dump.ARMED_S + 1
    assert dumps.section(cache) == {}


def test_token_ids_come_by_leave_and_under_a_key_alone(cache: Any) -> None:
    dumps = TreeDumps()
    assert not dumps.ask(with_key(Key.draw())) and dumps.section(cache) == {}
    assert dumps.ask({TREE_ARGUMENT: SHAPE}) and "tokens" not in dumps.section(cache)["tree"]
    dumps = TreeDumps(expose_tokens=True)
    assert not dumps.ask({TREE_ARGUMENT: WITH_TOKENS}) and dumps.section(cache) == {}
    assert dumps.ask(with_key(Key.draw())) and dumps.section(cache)["tree"]["tokens"]


class WorkClock:
    """A clock that advances by what a walk describes, so that a page's length doesn't depend on the machine."""

    NODE_S, TOKEN_S = 50e-6, 5e-8

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        describe, seal = tree_dump.describe_node, Key.seal

        def described(*args: Any) -> dict[str, Any]:
            self.now_s += self.NODE_S
            return describe(*args)

        def sealed(key: Key, ids: Any, place: str) -> str:
            self.now_s += len(ids) * self.TOKEN_S
            return seal(key, ids, place)

        monkeypatch.setattr(tree_dump, "describe_node", described)
        monkeypatch.setattr(Key, "seal", sealed)
        monkeypatch.setattr(tree_dump.time, "perf_counter", lambda: self.now_s)

    LOOK_S = tree_dump.NODES_A_LOOK * NODE_S + tree_dump.TOKENS_A_PIECE * TOKEN_S
    """The most that is described between two looks at the clock."""


def test_a_big_tree_that_grows_comes_in_small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among the nodes is one of 300,000 tokens; requests split edges between the pages."""
    engineless_cache.publish_settings()
    clock = WorkClock(monkeypatch)
    driver = Driver("marconi", slots=3_000, tokens=420_000, context_tokens=310_000, requests=4)
    long = array("q", range(1, 300_001))
    driver.serve(0, long, array("q", [1, 2, 3]))

    def ask(number: int) -> None:
        driver.serve(
            number, array("q", [number % 97, *range(1_000 + number, 1_020 + number)]), array("q", [1, 2])
        )

    for number in range(1, 700):
        ask(number)
    key = Key.draw()
    walk, number = TreeWalk(driver.cache, 1, key), 700
    took: list[float] = []
    joined: DumpedTree | None = None
    while joined is None or walk.page["left"]:
        began_s = clock.now_s
        page = json.dumps(walk.turn())
        took.append(clock.now_s - began_s)
        joined = joined or DumpedTree(walk.page, key)
        assert joined.add(json.loads(page))
        if walk.page["left"] and number < 720:
            ask(number)
            number += 1
    whole = joined.whole()
    assert max(took) <= tree_dump.PAGE_S + clock.LOOK_S and len(took) > 10, sorted(took)[-5:]
    there = {node.id for node in nodes_of(driver.cache)}
    assert {node["id"] for node in whole["nodes"]} >= there and whole["requests_meanwhile"] > 0
    told = {node["id"]: node for node in whole["nodes"]}
    for node in nodes_of(driver.cache):
        if "tokens" in told[node.id] and told[node.id]["edge_tokens"] == len(node.key):
            assert told[node.id]["tokens"] == node.key.raw_token_ids().tolist()
    assert sum(len(node.get("tokens", ())) for node in whole["nodes"]) > 300_000
