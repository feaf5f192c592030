"""A radix tree over token ids: KV on every edge, a recurrent state on some nodes.

KV of a prompt can be cut at any token, a recurrent state can't: it stands for exactly the tokens from the
root to the node that holds it. So an edge is an array of tokens whose KV is held, and a node may or may not
hold a state. `lookup` is pure; `insert`, `split`, `boundary`, `set_state`, `drop_state`, `touch`,
`remove_leaf`, `merge_into_child`, `pin`, `unpin`, `lock` and `unlock` change the tree. Time is an integer tick that
the caller hands in. A request pins a path, whose KV then stays, and locks one state until it has copied it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

_FIRST_BLOCK_TOKENS = 512


def common_prefix_tokens(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common prefix of two int32[n] and int32[m] arrays (tokens).

    Compares in blocks that grow, so an early difference costs little and a long match runs at memory speed.
    """
    n = min(len(a), len(b))
    start, block = 0, _FIRST_BLOCK_TOKENS
    while start < n:
        stop = min(n, start + block)
        differ = a[start:stop] != b[start:stop]
        first = int(differ.argmax())
        if differ[first]:
            return start + first
        start, block = stop, block * 8
    return n


class Node:
    """The end of an edge. `tokens` is the edge; the node stands for all tokens from the root to its end."""

    __slots__ = (
        "children",
        "depth_tokens",
        "last_tick",
        "locks",
        "parent",
        "pins",
        "record",
        "serial",
        "state",
        "tokens",
    )

    def __init__(
        self, serial: int, tokens: np.ndarray, parent: Node | None, depth_tokens: int, tick: int
    ) -> None:
        self.serial = serial  # order of creation: a deterministic name
        self.tokens = tokens  # int32[edge]
        self.parent: Node = parent  # type: ignore[assignment]  # None: the root, and what was removed
        self.depth_tokens = depth_tokens
        self.children: dict[int, Node] = {}
        self.state: Any = None
        self.pins = 0  # requests whose path goes through this node
        self.locks = 0  # requests that keep its state
        self.last_tick = tick
        self.record: Any = None  # the owner's own

    def __repr__(self) -> str:
        return (
            f"Node({self.serial}, edge={len(self.tokens)}, depth={self.depth_tokens}, state={self.state!r})"
        )

    @property
    def is_leaf(self) -> bool:
        return not self.children


@dataclass(frozen=True, slots=True)
class Lookup:
    """What the tree holds of a sequence."""

    path: tuple[Node, ...]  # nodes whose edges match whole, from below the root
    partial: Node | None  # the next node, where its edge matches in part only
    kv_tokens: int  # tokens whose KV is held
    state_node: Node | None  # deepest node on the path with a state
    diverges: bool  # the tree holds another continuation beyond kv_tokens, so the sequence will part from it

    @property
    def state_tokens(self) -> int:
        """Tokens that can skip prefill in a hybrid model: up to the deepest state."""
        return self.state_node.depth_tokens if self.state_node else 0


@dataclass(frozen=True, slots=True)
class Insertion:
    """What an insert changed."""

    node: Node  # stands for the whole sequence
    new_tokens: int  # KV tokens added
    upper: Node | None  # made by splitting an edge, if one was split


class RadixTree:
    """The tree. Counters (`num_nodes`, `num_tokens`, `num_states`) leave the root out."""

    def __init__(self) -> None:
        self._next_serial = 0
        self.num_nodes = 0
        self.num_tokens = 0
        self.num_states = 0
        self.root = Node(-1, np.empty(0, np.int32), None, 0, 0)

    def lookup(self, tokens: np.ndarray, start: Node | None = None) -> Lookup:
        """The longest held prefix of `tokens: int32[L]`. Doesn't change the tree.

        start: a node known to be on the way; the path and its states begin below it
        """
        node = start or self.root
        depth, length = node.depth_tokens, len(tokens)
        path: list[Node] = []  # followed by first tokens alone, so that many short edges are compared at once
        while depth < length and (child := node.children.get(tokens.item(depth))) is not None:
            path.append(child)
            node, depth = child, child.depth_tokens
        partial = None
        if path:
            first = path[0].depth_tokens - len(path[0].tokens)
            edges = path[0].tokens if len(path) == 1 else np.concatenate([n.tokens for n in path])
            matched = first + common_prefix_tokens(edges, tokens[first:])
            whole = bisect_right(path, matched, key=attrgetter("depth_tokens"))
            if whole < len(path):
                depth, partial = matched, path[whole]
                del path[whole:]
        state_node = next((n for n in reversed(path) if n.state is not None), None)
        last = path[-1] if path else start or self.root
        diverges = partial is not None or (bool(last.children) and last is not self.root)
        return Lookup(tuple(path), partial, depth, state_node, diverges)

    def insert(self, tokens: np.ndarray, tick: int, start: Node | None = None) -> Insertion:
        """Hold KV for `tokens: int32[L]`, L > 0. New tokens are copied; old ticks and states stay.

        A split makes an upper node that takes the lower one's pins; new nodes are stamped `tick`.
        start: a node known to be on the way
        """
        if len(tokens) == 0:
            raise ValueError("tokens: an empty sequence has no node")
        node, upper = start or self.root, None
        depth = node.depth_tokens
        while depth < len(tokens):
            child = node.children.get(int(tokens[depth]))
            if child is None:
                leaf = self._new_node(np.array(tokens[depth:], dtype=np.int32), node, len(tokens), tick)
                node.children[int(tokens[depth])] = leaf
                self.num_tokens += len(leaf.tokens)
                return Insertion(leaf, len(leaf.tokens), upper)
            matched = common_prefix_tokens(child.tokens, tokens[depth:])
            if matched < len(child.tokens):
                child = upper = self.split(child, matched, tick)
            node = child
            depth += matched
        return Insertion(node, 0, upper)

    def split(self, node: Node, edge_tokens: int, tick: int) -> Node:
        """Cut `node`'s edge after `edge_tokens` tokens; returns the new upper node. `node` keeps its end."""
        if not 0 < edge_tokens < len(node.tokens):
            raise ValueError(f"edge_tokens: {edge_tokens} is not inside an edge of {len(node.tokens)} tokens")
        parent = node.parent
        depth = node.depth_tokens - len(node.tokens) + edge_tokens
        upper = self._new_node(node.tokens[:edge_tokens], parent, depth, tick)
        upper.pins = node.pins
        upper.last_tick = tick
        parent.children[int(upper.tokens[0])] = upper
        node.tokens = node.tokens[edge_tokens:]
        node.parent = upper
        upper.children[int(node.tokens[0])] = node
        return upper

    def boundary(self, node: Node, depth_tokens: int, tick: int) -> Node:
        """The node that ends at `depth_tokens` on the path to `node`, split off if need be."""
        if not 0 < depth_tokens <= node.depth_tokens:
            raise ValueError(f"depth_tokens: {depth_tokens} is not on a path of {node.depth_tokens} tokens")
        while node.depth_tokens - len(node.tokens) >= depth_tokens:
            node = node.parent
        if node.depth_tokens == depth_tokens:
            return node
        return self.split(node, depth_tokens - (node.depth_tokens - len(node.tokens)), tick)

    def set_state(self, node: Node, state: Any) -> None:
        """Put a state on a node that has none."""
        if node is self.root or node.state is not None or state is None:
            raise ValueError(f"node: can't take a state: {node}")
        node.state = state
        self.num_states += 1

    def drop_state(self, node: Node) -> Any:
        """Take the state off a node; its KV stays. Returns the state."""
        if node.state is None:
            raise ValueError(f"node: has no state: {node}")
        state, node.state = node.state, None
        self.num_states -= 1
        return state

    def touch(self, node: Node, tick: int, *, whole_path: bool = False) -> None:
        """Stamp a node, or all nodes from it to the root, as used at `tick`."""
        node.last_tick = tick
        while whole_path and node is not self.root:
            node = node.parent
            node.last_tick = tick

    def remove_leaf(self, node: Node) -> int:
        """Delete an unpinned leaf with its KV and state; returns the KV tokens freed."""
        if node is self.root or node.children or node.pins:
            raise ValueError(f"node: not a free leaf: {node}")
        if node.state is not None:
            self.drop_state(node)
        del node.parent.children[int(node.tokens[0])]
        node.parent = None  # type: ignore[assignment]
        self.num_nodes -= 1
        self.num_tokens -= len(node.tokens)
        return len(node.tokens)

    def merge_into_child(self, node: Node) -> Node:
        """Join an inner node with one child, no state, no pins of its own into that child; returns it."""
        if node is self.root or len(node.children) != 1 or node.state is not None:
            raise ValueError(f"node: not mergeable: {node}")
        (child,) = node.children.values()
        if child.pins != node.pins:
            raise ValueError(f"node: a request is pinned to it: {node}")
        child.tokens = np.concatenate([node.tokens, child.tokens])
        child.parent = node.parent
        node.parent.children[int(child.tokens[0])] = child
        node.parent = None  # type: ignore[assignment]
        self.num_nodes -= 1
        return child

    def pin(self, node: Node) -> None:
        """Hold the path to `node` for a running request."""
        while node is not self.root:
            node.pins += 1
            node = node.parent

    def unpin(self, node: Node) -> None:
        """Undo one `pin(node)`."""
        while node is not self.root:
            if node.pins <= 0:
                raise ValueError(f"node: not pinned: {node}")
            node.pins -= 1
            node = node.parent

    def holds_state(self, node: Node) -> bool:
        """Whether there is a state at the node."""
        return node.state is not None

    def locks(self, node: Node) -> int:
        """Requests that keep the node's state."""
        return node.locks

    def lock(self, node: Node) -> None:
        """Keep the node's state for a running request."""
        node.locks += 1

    def unlock(self, node: Node) -> None:
        """Undo one `lock(node)`."""
        if node.locks <= 0:
            raise ValueError(f"node: not locked: {node}")
        node.locks -= 1

    def dead_leaf_may_go(self, node: Node) -> bool | None:
        """Whether a leaf without a state is free to leave; None: it is none any more."""
        if node.parent is None or not node.is_leaf or node.state is not None:
            return None
        return not node.pins

    def nodes(self) -> Iterator[Node]:
        """All nodes but the root, depth first, children in the order in which they were attached."""
        stack = list(reversed(self.root.children.values()))
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children.values()))

    def sequence(self, node: Node) -> np.ndarray:
        """All tokens from the root to `node`: int32[depth]."""
        parts = []
        while node is not self.root:
            parts.append(node.tokens)
            node = node.parent
        return np.concatenate(parts[::-1]) if parts else np.empty(0, np.int32)

    def check(self) -> None:
        """Recount everything from scratch; AssertionError names what is wrong."""
        num_nodes = num_tokens = num_states = 0
        serials = set()
        for node in self.nodes():
            num_nodes += 1
            num_tokens += len(node.tokens)
            num_states += node.state is not None
            serials.add(node.serial)
            assert len(node.tokens) > 0, f"empty edge: {node}"
            assert node.parent.children[int(node.tokens[0])] is node, f"filed under a wrong token: {node}"
            assert node.depth_tokens == node.parent.depth_tokens + len(node.tokens), f"wrong depth: {node}"
            assert node.pins >= sum(child.pins for child in node.children.values()), f"pins get lost: {node}"
            for child in node.children.values():
                assert child.parent is node, f"parent link broken: {child}"
        assert len(serials) == num_nodes, "two nodes share a serial"
        assert self.root.state is None and self.root.depth_tokens == 0, "the root holds nothing"
        counted = (num_nodes, num_tokens, num_states)
        kept = (self.num_nodes, self.num_tokens, self.num_states)
        assert counted == kept, f"nodes, tokens, states: counted {counted}, kept {kept}"

    def _new_node(self, tokens: np.ndarray, parent: Node, depth_tokens: int, tick: int) -> Node:
        node = Node(self._next_serial, tokens, parent, depth_tokens, tick)
        self._next_serial += 1
        self.num_nodes += 1
        return node
