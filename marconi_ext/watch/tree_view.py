"""A dumped radix tree in the terminal: the biggest subtrees first, the rest counted."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from rich.tree import Tree

SHOWN_CHILDREN = 8

Node = dict[str, Any]


def summary(dump: dict[str, Any]) -> str:
    """One line on a whole tree."""
    nodes = [node for node in dump["nodes"] if node["parent"] is not None]
    states = sum(node["state"] is not None for node in nodes)
    tokens = sum(node["edge_tokens"] for node in nodes if node["kv"] == "device")
    deepest = max((node["depth_tokens"] for node in nodes), default=0)
    return f"{len(nodes):,} nodes, {states:,} states, {tokens:,} tokens of KV, deepest {deepest:,} tokens"


def draw_tree(dump: dict[str, Any], title: str, levels: int) -> Tree:
    """The first `levels` levels; of each node the children with most nodes below them."""
    children: dict[Any, list[Node]] = defaultdict(list)
    for node in dump["nodes"]:
        children[node["parent"]].append(node)
    below: dict[Any, int] = {}
    for node in reversed(dump["nodes"]):  # parents come before children
        below[node["id"]] = sum(1 + below[child["id"]] for child in children[node["id"]])
    drawn = Tree(title)
    pending = [(drawn, root, 0) for root in children[None]]
    while pending:
        branch, node, level = pending.pop()
        ordered = sorted(children[node["id"]], key=lambda child: (-below[child["id"]], child["id"]))
        shown = ordered[:SHOWN_CHILDREN] if level < levels else []
        for child in shown:
            pending.append((branch.add(describe(child)), child, level + 1))
        left = below[node["id"]] - sum(1 + below[child["id"]] for child in shown)
        if left:
            branch.add(f"[dim]… {left:,} more nodes[/]")
    return drawn


def describe(node: Node) -> str:
    """A node in one line."""
    text = f"{node['depth_tokens']:,} tokens (+{node['edge_tokens']:,})"
    if node["state"] is not None:
        age = "" if node.get("age_ticks") is None else f", idle {node['age_ticks']:,}"
        where = "" if node["state"] == "device" else f" on {node['state']}"
        text += f" [cyan]{node['kind'] or 'state'}{where}[/]{age}"
        if node.get("score") is not None:
            text += f", score {node['score']:.3g}"
    if node["kv"] != "device":
        text += f" [dim]KV {node['kv'] or 'gone'}[/]"
    if node["kv_locks"] or node["state_locks"]:
        text += " [yellow]in use[/]"
    return text
