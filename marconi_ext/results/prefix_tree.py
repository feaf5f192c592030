"""An unbounded radix tree over token arrays with marks on it: what has been seen, and where a state lies."""

from collections.abc import Iterator

import numpy as np


class _Node:
    """An edge and its end: tokens int32[n], children by first token, and a mark at the end."""

    __slots__ = ("children", "marked", "tokens")

    def __init__(self, tokens: np.ndarray, marked: bool = False) -> None:
        self.tokens = tokens
        self.children: dict[int, _Node] = {}
        self.marked = marked


class PrefixTree:
    """Nothing is ever evicted. New tokens are copied, so callers may reuse their arrays."""

    def __init__(self) -> None:
        self._root = _Node(np.empty(0, dtype=np.int32))

    def lookup(self, tokens: np.ndarray) -> tuple[int, int]:
        """(length of the longest common prefix with anything inserted, deepest mark on the way there)."""
        depth = marked = 0
        for node, common in self._path(tokens):
            depth += common
            if node.marked and common == len(node.tokens):
                marked = depth
        return depth, marked

    def insert(self, tokens: np.ndarray) -> None:
        """Add a sequence."""
        depth, last = 0, self._root
        for node, common in self._path(tokens):
            if common < len(node.tokens):
                if depth + common < len(tokens):
                    self._split(node, common)
                    depth, last = depth + common, node
                    break
                return  # the sequence ends inside an edge
            depth, last = depth + common, node
        if depth < len(tokens):
            last.children[int(tokens[depth])] = _Node(tokens[depth:].copy())

    def mark(self, tokens: np.ndarray) -> None:
        """Put a mark where an inserted sequence ends (it isn't compared again). The empty one takes none."""
        depth, node = 0, self._root
        while depth < len(tokens):
            node = node.children[int(tokens[depth])]
            if depth + len(node.tokens) > len(tokens):
                self._split(node, len(tokens) - depth)
            depth += len(node.tokens)
        node.marked = node is not self._root

    def check(self) -> None:
        """Recount the tree's invariants. Raises AssertionError."""
        stack = [self._root]
        assert not len(self._root.tokens) and not self._root.marked
        while stack:
            node = stack.pop()
            for first, child in node.children.items():
                assert len(child.tokens) and first == int(child.tokens[0]), "a child's key is its first token"
                stack.append(child)

    def _path(self, tokens: np.ndarray) -> Iterator[tuple[_Node, int]]:
        """(node, tokens of its edge that match) down the tree; the last one may match in part."""
        node, depth = self._root, 0
        while depth < len(tokens) and (child := node.children.get(int(tokens[depth]))) is not None:
            common = common_prefix(child.tokens, tokens[depth:])
            yield child, common
            if common < len(child.tokens):
                return
            node, depth = child, depth + common

    @staticmethod
    def _split(node: _Node, at: int) -> None:
        """Cut a node's edge; the node keeps the upper part, so that its parent need not know."""
        lower = _Node(node.tokens[at:], node.marked)
        lower.children = node.children
        node.tokens, node.marked = node.tokens[:at], False
        node.children = {int(lower.tokens[0]): lower}


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Number of equal leading tokens."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    first = int(differs.argmax()) if n else 0
    return first if n and differs[first] else n
