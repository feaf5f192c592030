"""What the published simulator evicts: least recently used leaves, or the lowest α·efficiency + recency."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from marconi_ext.profiles import paper
from marconi_ext.simulator.artifact_leaves import evict_oldest_leaves

if TYPE_CHECKING:
    from marconi_ext.simulator.artifact_tree import ArtifactNode, ArtifactTree


class LruLeaves:
    """`artifact-lru` (SGLang+): a heap of leaves by stamp; a parent left without children joins it."""

    stamps_whole_walk = True

    def changed(self, node: ArtifactNode) -> None:
        pass

    def evict(self, tree: ArtifactTree, wanted_bytes: int) -> None:
        evict_oldest_leaves(tree, wanted_bytes)


def flop_efficiency(total: int, own: int) -> float:
    """FLOPs saved per byte by the node that ends `total` tokens deep and adds `own`, as published.

    The MLP term subtracts attention's FLOPs of the parent, and the memory is that of the whole prefix.
    """
    parent = total - own
    flops = (
        paper.MAMBA_LAYERS * paper.mamba_flops(own)
        + paper.ATTENTION_LAYERS * (paper.attention_flops(total) - paper.attention_flops(parent))
        + paper.MLP_LAYERS * (paper.mlp_flops(total) - paper.attention_flops(parent))
    )
    return flops / (paper.STATE_BYTES + paper.KV_BYTES_PER_TOKEN * total)


class FlopAware:
    """`artifact-static:ALPHA`: the first candidate with the lowest α·efficiency + recency goes.

    Candidates (nodes with at most one child) sit in dense arrays, so a choice is one vectorised pass; their
    order is only looked up where two scores are equal.
    """

    stamps_whole_walk = False

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self._nodes: list[ArtifactNode] = []
        self._efficiency = np.empty(1024)
        self._stamp = np.empty(1024)

    def changed(self, node: ArtifactNode) -> None:
        candidate = len(node.children) <= 1
        if not candidate:
            if node.row >= 0:
                self._drop(node)
            return
        if node.row < 0:
            node.row = len(self._nodes)
            self._nodes.append(node)
            if node.row == len(self._stamp):
                self._efficiency = np.resize(self._efficiency, 2 * node.row)
                self._stamp = np.resize(self._stamp, 2 * node.row)
        self._efficiency[node.row] = flop_efficiency(node.total, len(node.tokens))
        self._stamp[node.row] = node.stamp

    def evict(self, tree: ArtifactTree, wanted_bytes: int) -> None:
        freed = 0
        while freed < wanted_bytes and self._nodes:
            victim = self._victim(tree)
            if victim.children:
                self._drop(victim)
                tree.merge_into_child(victim)
                freed += paper.STATE_BYTES
            else:
                # The published code counts the size of the last candidate that it looked at.
                freed += paper.STATE_BYTES + len(_last_leaf(tree).tokens) * paper.KV_BYTES_PER_TOKEN
                self._drop(victim)
                tree.remove_leaf(victim)

    def _victim(self, tree: ArtifactTree) -> ArtifactNode:
        n = len(self._nodes)
        score = self.alpha * _scaled(self._efficiency[:n]) + _scaled(1.0 / (tree.clock - self._stamp[:n]))
        lowest = int(score.argmin())
        ties = np.flatnonzero(score == score[lowest])
        if len(ties) == 1:
            return self._nodes[lowest]
        return min((self._nodes[i] for i in ties), key=_order)

    def _drop(self, node: ArtifactNode) -> None:
        last = self._nodes.pop()
        if last is not node:
            self._nodes[node.row] = last
            self._efficiency[node.row] = self._efficiency[last.row]
            self._stamp[node.row] = self._stamp[last.row]
            last.row = node.row
        node.row = -1


def _scaled(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    if low == high:
        return np.ones_like(values)
    return (values - low) / (high - low)


def _last_leaf(tree: ArtifactTree) -> ArtifactNode:
    """The last candidate in depth-first order: the last child's last child and so on, a leaf."""
    node = tree.root
    while node.children:
        node = next(reversed(node.children.values()))
    return node


def _order(node: ArtifactNode) -> list[int]:
    """A key that sorts nodes depth first, children in insertion order."""
    ranks: list[int] = []
    while node.parent is not None:
        ranks.append(list(node.parent.children.values()).index(node))
        node = node.parent
    return ranks[::-1]
