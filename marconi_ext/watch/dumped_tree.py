"""The pages of a tree's dump, joined: one tree, parents before children, with token ids where the key opens them."""

from __future__ import annotations

from typing import Any

from marconi_ext.watch.sealed_tokens import Key

Node = dict[str, Any]


class DumpedTree:
    """first: any page of the dump; key: with which token ids were asked for"""

    def __init__(self, first: dict[str, Any], key: Key | None = None) -> None:
        self._first, self._key = first, key
        self._last = first
        self._nodes: dict[int, Node] = {}
        self._pieces: dict[int, dict[int, list[int]]] = {}

    def add(self, page: dict[str, Any]) -> bool:
        """Take a page, once or again. Returns: whether it is of the same dump."""
        if page.get("dump") != self._first.get("dump"):
            return False
        self._last = page
        for node in page["nodes"]:
            self._nodes[node["id"]] = node
        for piece in page.get("tokens", ()):
            if self._key is None:
                break
            place = f"{piece['id']}.{piece['from']}"
            self._pieces.setdefault(piece["id"], {})[piece["from"]] = self._key.unseal(piece["sealed"], place)
        return True

    def whole(self) -> dict[str, Any]:
        """{"tick", "page_tokens", "requests_meanwhile", "nodes"}.

        Requests that began between the first page and the last may have changed the tree: nodes whose parent is gone
        are left out, and so are token ids of a node that was split.
        """
        nodes: list[Node] = []
        there: set[int | None] = {None}
        for node in sorted(self._nodes.values(), key=lambda node: (node["depth_tokens"], node["id"])):
            if node["parent"] not in there:
                continue
            there.add(node["id"])
            pieces = self._pieces.get(node["id"], {})
            tokens = [token for begin in sorted(pieces) for token in pieces[begin]]
            nodes.append(
                {**node, "tokens": tokens} if tokens and len(tokens) == node["edge_tokens"] else node
            )
        return {
            "tick": self._last["tick"],
            "page_tokens": self._last["page_tokens"],
            "requests_meanwhile": self._last["tick"] - self._first["tick"],
            "nodes": nodes,
        }
