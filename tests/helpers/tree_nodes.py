"""The nodes of a live cache's tree."""

from __future__ import annotations

from typing import Any


def nodes_of(cache: Any) -> list[Any]:
    """All but the root, a parent before its children."""
    found, left = [], list(cache.tree_core.root_node.children.values())
    while left:
        found.append(left.pop())
        left += found[-1].children.values()
    return found
