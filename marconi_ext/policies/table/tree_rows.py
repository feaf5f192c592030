"""Links the table's rows to the nodes of a radix tree.

Any tree will do whose nodes have `parent` and `children` (a dict), and where an attribute `record` can be set:
the simulator's and SGLang's. A node has at most one row; a row may have no node yet (a state whose KV is not in
the tree so far).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from marconi_ext.policies.runtime import PolicyRuntime
from marconi_ext.policies.table.checkpoints import Kind

FEW_NODES = 16  # below a place at which prompts part: more is a prefix that many have in common


def row_of(node: Any) -> int:
    """The node's row, or -1."""
    row = getattr(node, "record", None)
    return -1 if row is None else row


class TreeRecords:
    """The links of one tree.

    edge_tokens: node -> tokens of the edge that ends at it
    alive: node -> whether it is still in the tree
    """

    def __init__(
        self,
        runtime: PolicyRuntime,
        edge_tokens: Callable[[Any], int],
        alive: Callable[[Any], bool] = lambda node: node.parent is not None,
    ) -> None:
        self.runtime = runtime
        self.edge_tokens = edge_tokens
        self.alive = alive
        self._nodes: dict[int, Any] = {}

    def node(self, row: int) -> Any:
        """The row's node, or None."""
        return self._nodes.get(row)

    def path(self, node: Any) -> list[Any]:
        """Nodes from below the root to `node`, shallow first; the root itself has no path."""
        found = []
        while node.parent is not None:
            found.append(node)
            node = node.parent
        return found[::-1]

    def above(self, node: Any) -> int:
        """The nearest row strictly above, or -1."""
        node = node.parent
        while node is not None and node.parent is not None:
            if row_of(node) >= 0:
                return row_of(node)
            node = node.parent
        return -1

    def top_rows(self, node: Any) -> list[int]:
        """The rows at or below `node` that have none between it and them."""
        found, stack = [], [node]
        while stack:
            node = stack.pop()
            if row_of(node) >= 0:
                found.append(row_of(node))
            else:
                stack.extend(node.children.values())
        return found

    def near(self, below: Iterable[tuple[Any, int]], within_tokens: int) -> list[int]:
        """Rows of nodes that end at most so far below a place. below: nodes, each with the tokens from there to its
        end; only a few are looked at"""
        found, stack = [], list(below)
        for _ in range(FEW_NODES):
            if not stack:
                break
            node, distance = stack.pop()
            if distance > within_tokens:
                continue
            if row_of(node) >= 0:
                found.append(row_of(node))
            stack.extend((child, distance + self.edge_tokens(child)) for child in node.children.values())
        return found

    def record(self, node: Any, depth_tokens: int, kind: Kind) -> int:
        """A new row for a node without one."""
        below = [row for child in node.children.values() for row in self.top_rows(child)]
        row = self.runtime.record(self.above(node), depth_tokens, kind, below)
        self._link(row, node)
        return row

    def attach(self, row: int, node: Any) -> None:
        """Link a row to the node that has been made for it since. Raises ValueError if the node has another."""
        if row_of(node) not in (-1, row):
            raise ValueError(f"node: has row {row_of(node)} already, can't take {row}")
        below = [found for child in node.children.values() for found in self.top_rows(child)]
        self.runtime.table.place(row, self.above(node), below)
        self._link(row, node)

    def tend(self, node: Any, *, children: int | None = None) -> None:
        """Bring the table's facts of a node up to date. children: to be counted, where the tree lags behind."""
        row = row_of(node)
        if row < 0 or node.parent is None:
            return
        table = self.runtime.table
        table.fanout[row] = len(node.children) if children is None else children
        table.leaf_tokens[row] = 0 if table.fanout[row] else self.edge_tokens(node)

    def forget(self, node: Any) -> None:
        """The node leaves the tree."""
        row = row_of(node)
        if row >= 0:
            self.runtime.forget(row)
            del self._nodes[row]
            node.record = None

    def clear(self) -> None:
        """The whole tree is gone."""
        for node in list(self._nodes.values()):
            self.forget(node)

    def _link(self, row: int, node: Any) -> None:
        node.record = row
        self._nodes[row] = node
        self.tend(node)
        for child in node.children.values():
            self.tend(child)
