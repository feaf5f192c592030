"""What a host tier demotes and drops first: KV without a state, then the state of the lowest score."""

from __future__ import annotations

from array import array
from itertools import pairwise

import numpy as np
import pytest
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedLRUList, UnifiedTreeNode

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.fixed_rules import Lru
from marconi_ext.policies.runtime import PolicyRuntime
from marconi_ext.policies.table.checkpoints import CheckpointTable, Kind
from marconi_ext.policies.table.tree_rows import TreeRecords
from sglang_hooks.radix import host_tier
from sglang_hooks.radix.host_tier import bring_forward, utilities

TYPES = (ComponentType.FULL, ComponentType.MAMBA)


class ByDepth(Lru):
    """A short prefix is worth the least."""

    def scores(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
        return table.depth[rows].astype(float)


class Tree:
    """Leaves below one root, each with a state on the device, on the host, or none."""

    def __init__(self) -> None:
        self.runtime = PolicyRuntime(None, ByDepth(), Currency())
        self.records = TreeRecords(self.runtime, lambda node: len(node.key))
        self.root = self._node(None, [])

    def leaf(self, tokens: int, tier: str | None) -> UnifiedTreeNode:
        made = self._node(self.root, [7] * tokens)
        if tier is not None:
            self.runtime.saved(self.records.record(made, tokens, Kind.LAST_TOKEN))
            data = made.component_data[ComponentType.MAMBA]
            data.value, data.host_value = (1, None) if tier == "device" else (None, 1)
            if tier == "host":
                self.runtime.evicted(made.record)
        return made

    def _node(self, parent: UnifiedTreeNode | None, tokens: list[int]) -> UnifiedTreeNode:
        made = UnifiedTreeNode(TYPES)
        made.parent, made.key = parent, RadixKey(array("q", tokens))
        if parent is not None:
            parent.children[made.id] = made
        return made


def test_kv_without_a_state_goes_first_then_the_lowest_score() -> None:
    tree = Tree()
    wanted = [
        tree.leaf(90, None),
        tree.leaf(10, None),
        tree.leaf(20, "host"),
        tree.leaf(30, "device"),
        tree.leaf(40, "host"),
    ]
    found = utilities(tree.runtime, wanted[::-1])
    assert sorted(wanted[::-1], key=found.__getitem__) == wanted
    assert all(found[a] < found[b] for a, b in pairwise(wanted)), "no two are alike"


@pytest.mark.parametrize("locked", [False, True])
def test_the_chosen_state_is_where_stock_takes_one(locked: bool) -> None:
    tree = Tree()
    states = UnifiedLRUList(ComponentType.MAMBA, TYPES, use_host_ptr=True)
    deep, short, middle = (tree.leaf(tokens, "host") for tokens in (50, 5, 20))
    for node in (deep, short, middle):
        states.insert_mru(node)
    short.component_data[ComponentType.MAMBA].host_lock_ref = int(locked)
    assert bring_forward(tree.runtime, states)
    assert states.get_lru_no_host_lock() is (middle if locked else short)
    assert {node.id for node in (deep, short, middle)} == set(states.cache)


def test_nothing_to_take() -> None:
    tree = Tree()
    states = UnifiedLRUList(ComponentType.MAMBA, TYPES, use_host_ptr=True)
    assert not bring_forward(tree.runtime, states)
    only = tree.leaf(3, "host")
    states.insert_mru(only)
    only.component_data[ComponentType.MAMBA].host_lock_ref = 1
    assert not bring_forward(tree.runtime, states)


def test_a_choice_looks_at_the_oldest_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_tier, "WINDOW", 2)
    tree = Tree()
    states = UnifiedLRUList(ComponentType.MAMBA, TYPES, use_host_ptr=True)
    old, older_short, recent_shorter = (tree.leaf(tokens, "host") for tokens in (50, 20, 5))
    for node in (old, older_short, recent_shorter):
        states.insert_mru(node)
    assert bring_forward(tree.runtime, states)
    assert states.get_lru_no_host_lock() is older_short


def test_what_a_session_refers_to_leaves_the_host_last() -> None:
    tree = Tree()
    states = UnifiedLRUList(
        ComponentType.MAMBA, TYPES, use_host_ptr=True, is_referenced=host_tier.is_referenced
    )
    kept_deep, kept_short, middle, short = (tree.leaf(tokens, "host") for tokens in (50, 5, 20, 10))
    for node in (kept_deep, kept_short):
        node.component_data[ComponentType.MAMBA].session_ref = 1
    for node in (kept_short, middle, kept_deep, short):
        states.insert_mru(node)
    for wanted in (short, middle, kept_short, kept_deep):
        assert bring_forward(tree.runtime, states)
        assert states.get_lru_no_host_lock() is wanted
        states.remove_node(wanted)
