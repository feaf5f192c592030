"""What is written to storage: no chain has a gap, and tails that aren't worth it stay out whole."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

from marconi_ext.policies.storage_writes import FEW
from sglang_hooks.radix.storage_tier import StorageTier


class Tree:
    """Nodes with a score each, and what was written of them, in order: (name, with its state)."""

    def __init__(self, share: float) -> None:
        self.scores: list[float] = []
        self.counters: Counter[str] = Counter()
        eviction = SimpleNamespace(
            scores=lambda table, rows, tick: np.array([self.scores[row] for row in rows])
        )
        runtime = SimpleNamespace(eviction=eviction, table=None, tick=0)
        self.root = Node(parent=None, children={})
        self.tier = StorageTier(runtime, self.counters, share)
        self.written: list[tuple[str, bool]] = []
        for _ in range(FEW):
            self.write(self.node("known", self.root, 5.0))
        self.written.clear()

    def node(self, name: str, parent: SimpleNamespace, score: float | None) -> SimpleNamespace:
        data = SimpleNamespace(value=None, host_value=None if score is None else 1)
        self.scores.append(score or 0.0)
        node = Node(name=name, parent=parent, children={}, record=len(self.scores) - 1)
        node.component_data = {ComponentType.MAMBA: data}
        parent.children[name] = node
        return node

    def write(self, node: SimpleNamespace) -> None:
        self.tier.write(
            node, lambda found: self.written.append((found.name, self.tier.without_state is not found))
        )


class Node(SimpleNamespace):
    __hash__ = object.__hash__
    __eq__ = object.__eq__


@pytest.fixture
def tree() -> Tree:
    return Tree(0.5)


def test_a_tail_that_is_not_worth_it_stays_out(tree: Tree) -> None:
    tree.write(tree.node("tail", tree.root, 1.0))
    assert tree.written == [] and tree.counters["storage_held_back"] == 1
    tree.write(tree.node("good", tree.root, 9.0))
    assert tree.written == [("good", True)]


def test_its_kv_goes_first_when_something_below_it_is_written(tree: Tree) -> None:
    tail = tree.node("tail", tree.root, 1.0)
    tree.write(tail)
    turn = tree.node("turn", tail, 1.0)
    tree.write(turn)
    tree.write(tree.node("next", turn, 9.0))
    assert tree.written == [("tail", False), ("turn", False), ("next", True)]
    tree.write(tree.node("other", tail, 9.0))
    assert tree.written[3:] == [("other", True)]  # what is above it is there


def test_both_parts_of_a_split_tail_are_held_back(tree: Tree) -> None:
    tail = tree.node("tail", tree.root, 1.0)
    tree.write(tail)
    upper = tree.node("upper", tree.root, None)
    upper.children["tail"], tail.parent = tail, upper
    tree.tier.split(upper, tail)
    tree.write(tree.node("next", tail, 9.0))
    assert tree.written == [("upper", False), ("tail", False), ("next", True)]


def test_inner_nodes_and_those_without_a_state_are_written(tree: Tree) -> None:
    inner = tree.node("inner", tree.root, 1.0)
    tree.node("below", inner, 1.0)
    tree.write(inner)
    tree.write(tree.node("kv", tree.root, None))
    assert tree.written == [("inner", False), ("kv", True)]


def test_by_default_all_is_written() -> None:
    tree = Tree(1.0)
    tree.write(tree.node("tail", tree.root, -1.0))
    assert tree.written == [("tail", True)]
