"""The dump describes the tree by hand below, and is only there while somebody asked for it."""

import json
from array import array
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.fixed_rules import Lru
from marconi_ext.policies.runtime import PolicyRuntime
from marconi_ext.policies.table.checkpoints import Kind
from marconi_ext.policies.table.tree_rows import TreeRecords
from sglang_hooks.observe import tree_dump
from sglang_hooks.observe.tree_dump import TreeDumps, dump_tree


def node(parent: UnifiedTreeNode | None, tokens: list[int]) -> UnifiedTreeNode:
    made = UnifiedTreeNode((ComponentType.FULL, ComponentType.MAMBA))
    made.parent, made.key = parent, RadixKey(array("q", tokens))
    made.component_data[ComponentType.FULL].value = object()
    if parent is not None:
        parent.children[tokens[0]] = made
    return made


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
    return SimpleNamespace(
        tree_core=SimpleNamespace(root_node=root), mamba=SimpleNamespace(runtime=runtime), page_size=1
    )


def test_nodes_by_hand(cache: Any) -> None:
    dump = dump_tree(cache)
    assert json.loads(json.dumps(dump)) == dump
    by_end = {(n["depth_tokens"], n["edge_tokens"]): n for n in dump["nodes"]}
    assert len(dump["nodes"]) == 4 and not any("tokens" in n for n in dump["nodes"])
    root, shared, gone, last = by_end[0, 0], by_end[3, 3], by_end[5, 2], by_end[4, 1]
    assert root["parent"] is None and shared["parent"] == root["id"] and gone["parent"] == shared["id"]
    assert (shared["kind"], shared["state"], shared["age_ticks"]) == ("branch", "device", 2)
    assert (gone["kind"], gone["state"], gone["kv"]) == ("prompt-end", None, "device")
    assert gone["score"] is root["score"] is None and shared["score"] == last["score"] is not None
    assert (last["kind"], last["state_locks"]) == ("last-token", 1)


def test_token_ids_only_where_asked_for(cache: Any) -> None:
    tokens = [n.get("tokens") for n in dump_tree(cache, with_tokens=True)["nodes"]]
    assert sorted(filter(None, tokens)) == [[1, 2], [5], [7, 8, 9]]


def test_armed_until_ended_or_too_old(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 10.0
    monkeypatch.setattr(tree_dump.time, "monotonic", lambda: now_s)
    dumps = TreeDumps(expose_tokens=True)
    assert dumps.section(cache) == {}
    assert not dumps.ask(3)
    assert dumps.ask(2) and "tokens" in dumps.section(cache)["tree"]["nodes"][1]
    assert dumps.ask(0) and dumps.section(cache) == {}
    dumps.ask(1)
    now_s += tree_dump.ARMED_S + 1
    assert dumps.section(cache) == {}


def test_token_ids_only_where_the_server_allows_it(cache: Any) -> None:
    dumps = TreeDumps()
    assert not dumps.ask(2) and dumps.section(cache) == {}
    assert dumps.ask(1) and not any("tokens" in node for node in dumps.section(cache)["tree"]["nodes"])
