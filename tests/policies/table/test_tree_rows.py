"""Rows of the table and nodes of a tree: linked, looked up from either side, and kept up to date."""

from __future__ import annotations

import pytest

from marconi_ext.policies.admission import Exact
from marconi_ext.policies.currency import Currency
from marconi_ext.policies.fixed_rules import Lru
from marconi_ext.policies.runtime import PolicyRuntime
from marconi_ext.policies.table.checkpoints import Kind
from marconi_ext.policies.table.tree_rows import TreeRecords, row_of


class Node:
    def __init__(self, parent: Node | None = None, tokens: int = 0) -> None:
        self.parent, self.tokens, self.children = parent, tokens, {}
        if parent is not None:
            parent.children[len(parent.children)] = self


@pytest.fixture
def tree() -> tuple[TreeRecords, list[Node]]:
    """root -> 0 (10 tokens) -> 1 (20) -> 2 (30), and 0 -> 3 (5)."""
    root = Node()
    nodes = [Node(root, 10)]
    nodes += [Node(nodes[0], 20)]
    nodes += [Node(nodes[1], 30), Node(nodes[0], 5)]
    runtime = PolicyRuntime(Exact(), Lru(Currency()), Currency())
    return TreeRecords(runtime, lambda node: node.tokens), nodes


def test_rows_made_in_any_order_hang_as_their_nodes_do(tree) -> None:
    """The one in the middle comes last: it goes between those above and below."""
    records, nodes = tree
    table = records.runtime.table
    rows = {at: records.record(nodes[at], depth, Kind.BRANCH) for at, depth in ((2, 60), (0, 10), (1, 30))}
    assert [table.parent[rows[at]] for at in (0, 1, 2)] == [-1, rows[0], rows[1]]
    assert records.above(nodes[2]) == rows[1] and records.above(nodes[0]) == -1
    assert records.top_rows(nodes[1]) == [rows[1]] and records.node(rows[2]) is nodes[2]
    assert records.path(nodes[2]) == nodes[:3]
    table.check()


def test_a_row_waits_for_its_node(tree) -> None:
    records, nodes = tree
    runtime = records.runtime
    low = records.record(nodes[2], 60, Kind.LAST_TOKEN)
    row = runtime.record(-1, 30, Kind.BRANCH)
    assert records.node(row) is None and row_of(nodes[1]) == -1
    records.attach(row, nodes[1])
    assert runtime.table.parent[low] == row == row_of(nodes[1])
    with pytest.raises(ValueError, match="has row"):
        records.attach(low, nodes[1])
    runtime.table.check()


def test_facts_of_a_node_follow_the_tree(tree) -> None:
    """A leaf's own tokens, and ways on from an inner node."""
    records, nodes = tree
    table = records.runtime.table
    inner, leaf = (records.record(nodes[at], depth, Kind.BRANCH) for at, depth in ((0, 10), (3, 15)))
    assert (table.fanout[inner], table.leaf_tokens[inner], table.leaf_tokens[leaf]) == (2, 0, 5)
    Node(nodes[3], 7)
    records.tend(nodes[3])
    assert (table.fanout[leaf], table.leaf_tokens[leaf]) == (1, 0)
    records.tend(nodes[0], children=1)
    assert table.fanout[inner] == 1


def test_rows_near_a_place_are_found(tree) -> None:
    records, nodes = tree
    rows = {at: records.record(nodes[at], depth, Kind.BRANCH) for at, depth in ((1, 30), (2, 60), (3, 15))}
    below = [(nodes[1], 20), (nodes[3], 5)]
    assert records.near(below, 5) == [rows[3]]
    assert sorted(records.near(below, 20)) == sorted([rows[1], rows[3]])
    assert sorted(records.near(below, 50)) == sorted(rows.values())


def test_what_leaves_the_tree_leaves_the_table(tree) -> None:
    records, nodes = tree
    table = records.runtime.table
    rows = [records.record(nodes[at], depth, Kind.BRANCH) for at, depth in ((0, 10), (1, 30), (2, 60))]
    records.forget(nodes[1])
    assert row_of(nodes[1]) == -1 and records.node(rows[1]) is None
    assert table.parent[rows[2]] == rows[0]
    records.clear()
    assert not len(table.rows()) and all(row_of(node) == -1 for node in nodes)
    table.check()
