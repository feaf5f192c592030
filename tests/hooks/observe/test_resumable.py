"""The bookkeeping of what can be resumed equals a recount from the tree, after any script of changes."""

from __future__ import annotations

import random

import pytest

from sglang_hooks.observe.resumable import Resumable


class Tree:
    """Parents by name; 0 is the root."""

    def __init__(self) -> None:
        self.parent: dict[int, int | None] = {0: None}
        self.states: set[int] = set()
        self.names = 0

    def leaf(self, above: int) -> int:
        self.names += 1
        self.parent[self.names] = above
        return self.names

    def cut(self, lower: int) -> int:
        upper = self.leaf(self.parent[lower])
        self.parent[lower] = upper
        return upper

    def leaves(self) -> list[int]:
        return [node for node in self.parent if node and node not in self.parent.values()]

    def nodes(self) -> list[tuple[int, bool]]:
        return [(node, node in self.states) for node in self.parent if node]


def test_by_hand() -> None:
    tree = Tree()
    a = tree.leaf(0)
    b, c = tree.leaf(a), tree.leaf(a)
    kept = Resumable(tree.parent.__getitem__)
    assert kept.entered(b) == [a, b]
    assert kept.entered(c) == [c]
    assert kept.gone(b) == [b]
    assert kept.gone(c) == [c, a]
    assert kept.gone(c) == [] and len(kept) == 0


@pytest.mark.parametrize("seed", range(30))
def test_equals_a_recount(seed: int) -> None:
    rng = random.Random(seed)
    tree = Tree()
    kept = Resumable(tree.parent.__getitem__)
    shown: set[int] = set()  # what a consumer of the changes believes
    for _ in range(300):
        nodes = [node for node in tree.parent if node]
        step = rng.random()
        if step < 0.35 or not nodes:
            tree.leaf(rng.choice(list(tree.parent)))
        elif step < 0.6:
            node = rng.choice(nodes)
            tree.states.add(node)
            became = kept.entered(node)
            assert not shown & set(became)
            assert all(tree.parent[n] in shown | set(became) | {0} for n in became)
            shown |= set(became)
        elif step < 0.75:
            node = rng.choice(nodes)
            tree.states.discard(node)
            ended = kept.gone(node)
            assert set(ended) <= shown
            shown -= set(ended)
        elif step < 0.9:
            lower = rng.choice(nodes)
            upper = tree.cut(lower)
            kept.split(upper, lower)
            if lower in shown:
                shown.add(upper)
        else:
            leaf = rng.choice(tree.leaves())
            tree.states.discard(leaf)
            shown -= set(kept.gone(leaf))
            del tree.parent[leaf]
        kept.check(tree.nodes())
        assert shown == {node for node, _ in tree.nodes() if node in kept}


def test_the_recount_sees_a_missed_change() -> None:
    tree = Tree()
    node = tree.leaf(0)
    kept = Resumable(tree.parent.__getitem__)
    tree.states.add(node)
    with pytest.raises(AssertionError, match="states"):
        kept.check(tree.nodes())
