"""`artifact-vllm` (vLLM+): a tree of nodes of at most 32 tokens, a state on each, least recently used leaves out.

Only the last node of a sequence is shorter than 32 tokens. Children keep their order of insertion, which
decides ties; exact 32-token children are also filed by content, so a long prompt costs one look-up a node.
"""

from __future__ import annotations

import numpy as np

from marconi_ext.profiles import paper
from marconi_ext.simulator.artifact_leaves import check_counts, evict_oldest_leaves, nodes_below
from marconi_ext.simulator.radix_tree import common_prefix_tokens

BLOCK_TOKENS = 32


class BlockNode:
    """One node of at most 32 tokens. `full` files the full children by content, the first of equal ones."""

    __slots__ = ("children", "full", "parent", "short", "stamp", "tokens")

    def __init__(self, tokens: np.ndarray, parent: BlockNode | None, stamp: int) -> None:
        self.tokens = tokens  # int32[≤ 32]
        self.parent = parent
        self.stamp = stamp
        self.children: dict[int, BlockNode] = {}  # by id(), in insertion order
        self.full: dict[bytes, BlockNode] = {}
        self.short: dict[int, BlockNode] = {}

    def __lt__(self, other: BlockNode) -> bool:
        return self.stamp < other.stamp

    @property
    def is_full(self) -> bool:
        return len(self.tokens) == BLOCK_TOKENS

    def add(self, child: BlockNode) -> None:
        self.children[id(child)] = child
        self.file(child)

    def file(self, child: BlockNode) -> None:
        """File a child that is new, or that has just been filled."""
        self.short.pop(id(child), None)
        if child.is_full:
            self._file_full(child.tokens.tobytes())
        else:
            self.short[id(child)] = child

    def remove(self, child: BlockNode) -> None:
        del self.children[id(child)]
        self.short.pop(id(child), None)
        if child.is_full:
            self._file_full(child.tokens.tobytes())

    def _file_full(self, key: bytes) -> None:
        same = [c for c in self.children.values() if c.is_full and c.tokens.tobytes() == key]
        if same:
            self.full[key] = same[0]
        else:
            self.full.pop(key, None)

    def first_short_prefix(self, rest: np.ndarray) -> BlockNode | None:
        """The first short child whose whole key is a prefix of `rest`."""
        for child in self.children.values() if len(self.short) > 1 else self.short.values():
            n = len(child.tokens)
            if n < BLOCK_TOKENS and n <= len(rest) and np.array_equal(child.tokens, rest[:n]):
                return child
        return None


class VllmTree:
    """One byte budget; `serve` is match(input), then insert(input + output)."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.clock = 0
        self.root = BlockNode(np.empty(0, np.int32), None, 0)
        self.num_nodes = 0
        self.num_tokens = 0
        self.evictions = 0

    @property
    def used_bytes(self) -> int:
        return self.num_nodes * paper.STATE_BYTES + self.num_tokens * paper.KV_BYTES_PER_TOKEN

    def match(self, tokens: np.ndarray) -> tuple[int, int]:
        """Walk down and stamp; returns the matched tokens and the matched nodes, the root among them."""
        self.clock += 1
        tokens = np.ascontiguousarray(tokens, np.int32)
        node, at, matched_nodes = self.root, 0, 1
        while True:
            node.stamp = self.clock
            rest = tokens[at : at + BLOCK_TOKENS]
            child = node.full.get(rest.tobytes()) if len(rest) == BLOCK_TOKENS else None
            if child is None:
                short = node.first_short_prefix(rest)
                return (at, matched_nodes) if short is None else (at + len(short.tokens), matched_nodes + 1)
            node, at, matched_nodes = child, at + BLOCK_TOKENS, matched_nodes + 1

    def insert(self, tokens: np.ndarray) -> None:
        """Make room, then walk and add nodes. The counts of bytes may be negative, as published."""
        self.clock += 1
        _, matched_nodes = self.match(tokens)
        extra = len(tokens) - BLOCK_TOKENS * matched_nodes
        needed = extra / BLOCK_TOKENS * paper.STATE_BYTES + extra * paper.KV_BYTES_PER_TOKEN
        excess = self.used_bytes + needed - self.capacity_bytes
        if excess > 0:
            self.clock += 1
            evict_oldest_leaves(self, excess)
        self._attach(np.ascontiguousarray(tokens, np.int32))

    def serve(self, input_ids: np.ndarray, sequence: np.ndarray) -> int:
        """One request; returns the prompt tokens that skip prefill."""
        hit, _ = self.match(input_ids)
        self.insert(sequence)
        return hit

    def _attach(self, tokens: np.ndarray) -> None:
        node, at = self.root, 0
        while True:
            node.stamp = self.clock
            rest = tokens[at : at + BLOCK_TOKENS]
            child = self._next(node, rest)
            if child is not None:
                at += len(child.tokens)
                node = child
                continue
            if len(rest) == 0:
                return
            if node is self.root or node.is_full:
                child = BlockNode(rest.copy(), node, self.clock)
                node.add(child)
                self.num_nodes += 1
                self.num_tokens += len(rest)
                at += len(rest)
                node = child
            else:
                room = rest[: BLOCK_TOKENS - len(node.tokens)]
                node.tokens = np.concatenate([node.tokens, room])
                if node.is_full:
                    node.parent.file(node)
                self.num_tokens += len(room)
                at += len(room)

    @staticmethod
    def _next(node: BlockNode, rest: np.ndarray) -> BlockNode | None:
        """The first child whose whole key is a prefix of `rest` and as long as the longest common prefix."""
        if len(rest) == BLOCK_TOKENS:
            child = node.full.get(rest.tobytes())
            if child is not None:
                return child
        if len(rest) == 0 or node.first_short_prefix(rest) is None:
            return None
        common = [(child, common_prefix_tokens(child.tokens, rest)) for child in node.children.values()]
        longest = max(n for _, n in common)
        return next((c for c, n in common if n == longest == len(c.tokens)), None)

    def remove_leaf(self, node: BlockNode) -> None:
        """Drop a leaf, state and KV."""
        assert node.parent is not None, "the root is no leaf"
        node.parent.remove(node)
        self.num_nodes -= 1
        self.num_tokens -= len(node.tokens)
        self.evictions += 1

    def nodes(self) -> list[BlockNode]:
        """All nodes but the root, depth first, children in insertion order."""
        return nodes_below(self.root)

    def check(self) -> None:
        """Recount from scratch; only the last node of a sequence is short."""
        nodes = check_counts(self)
        assert all(node.is_full or not node.children for node in nodes), "a short node has children"
