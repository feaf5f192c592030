"""What the published simulator's two trees share: all nodes in order, a recount, and the oldest leaf first."""

from __future__ import annotations

import heapq
from typing import Any, Protocol

import numpy as np

from marconi_ext.profiles import paper


class Node(Protocol):
    """A node that sorts by its stamp."""

    tokens: np.ndarray

    @property
    def parent(self) -> Any: ...
    @property
    def children(self) -> dict[int, Any]: ...
    def __lt__(self, other: Any) -> bool: ...


class Tree(Protocol):
    """A tree whose leaves can be dropped."""

    root: Any
    num_nodes: int
    num_tokens: int

    def nodes(self) -> list[Any]: ...
    def remove_leaf(self, node: Any) -> None: ...


def nodes_below(root: Node) -> list[Any]:
    """All nodes but the root, depth first, children in insertion order."""
    found, stack = [], list(reversed(root.children.values()))
    while stack:
        node = stack.pop()
        found.append(node)
        stack.extend(reversed(node.children.values()))
    return found


def check_counts(tree: Tree) -> list[Any]:
    """Recount nodes and tokens from scratch. Returns: the nodes."""
    nodes = tree.nodes()
    assert len(nodes) == tree.num_nodes, f"nodes: counted {len(nodes)}, kept {tree.num_nodes}"
    tokens = sum(len(node.tokens) for node in nodes)
    assert tokens == tree.num_tokens, f"tokens: counted {tokens}, kept {tree.num_tokens}"
    return nodes


def evict_oldest_leaves(tree: Tree, wanted_bytes: float) -> None:
    """Drop leaves by stamp until so much is free, by the published count; a parent left without children joins them."""
    heap = [node for node in tree.nodes() if not node.children]
    heapq.heapify(heap)
    freed = 0
    while heap and freed < wanted_bytes:
        leaf = heapq.heappop(heap)
        parent = leaf.parent
        assert parent is not None, "the root is no leaf"
        freed += paper.STATE_BYTES + len(leaf.tokens) * paper.KV_BYTES_PER_TOKEN
        tree.remove_leaf(leaf)
        if parent is not tree.root and not parent.children:
            heapq.heappush(heap, parent)
