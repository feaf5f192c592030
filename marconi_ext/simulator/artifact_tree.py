"""The published simulator's radix tree: its walk, its stamps, its byte counting.

Every node holds a state. The clock counts matches, inserts and eviction calls. The odd parts are deliberate:
results must agree with the published ones request by request. `artifact_eviction.py` holds what goes first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from marconi_ext.profiles import paper
from marconi_ext.simulator.artifact_leaves import check_counts, nodes_below
from marconi_ext.simulator.radix_tree import common_prefix_tokens


class ArtifactNode:
    """One node: an edge of tokens and the state at its end."""

    __slots__ = ("children", "parent", "row", "stamp", "tokens", "total")

    def __init__(self, tokens: np.ndarray, parent: ArtifactNode | None, total: int, stamp: int) -> None:
        self.tokens = tokens  # int32[own]
        self.parent: ArtifactNode = parent  # type: ignore[assignment]  # None: the root, and what was removed
        self.total = total  # tokens from the root to the node's end
        self.stamp = stamp
        self.children: dict[int, ArtifactNode] = {}
        self.row = -1  # place in the list of eviction candidates

    def __lt__(self, other: ArtifactNode) -> bool:
        return self.stamp < other.stamp


@dataclass(frozen=True, slots=True)
class Walk:
    """Outcome of a match."""

    prefix_tokens: int  # all tokens that matched, edges matched in part included
    reusable_tokens: int  # of them, on edges that matched whole
    last_whole: ArtifactNode | None


class Evictor(Protocol):
    """What the tree needs of an eviction policy."""

    stamps_whole_walk: bool

    def changed(self, node: ArtifactNode) -> None:
        """`node` is new, or its edge, parent, stamp or number of children changed."""

    def evict(self, tree: ArtifactTree, wanted_bytes: int) -> None:
        """Free about `wanted_bytes`."""


class ArtifactTree:
    """One byte budget for states and KV; `serve` is a request: match(input), then insert(input + output)."""

    def __init__(self, capacity_bytes: int, evictor: Evictor, clock: int = 0) -> None:
        self.capacity_bytes = capacity_bytes
        self.evictor = evictor
        self.clock = clock
        self.root = ArtifactNode(np.empty(0, np.int32), None, 0, 0)
        self.num_nodes = 0  # the root holds no state
        self.num_tokens = 0
        self.evictions = 0
        self.matched_tokens = 0  # of prompts, edges matched in part included

    @property
    def used_bytes(self) -> int:
        return self.num_nodes * paper.STATE_BYTES + self.num_tokens * paper.KV_BYTES_PER_TOKEN

    def match(self, tokens: np.ndarray) -> Walk:
        """Walk down and stamp. An edge that matches in part doesn't end the walk: a child of that node that
        starts with the next token goes on with it."""
        self.clock += 1
        node, at, reusable, last_whole = self.root, 0, 0, None
        stamps_all, changed = self.evictor.stamps_whole_walk, self.evictor.changed
        clock, length = self.clock, len(tokens)
        while at < length:
            child = node.children.get(int(tokens[at]))
            if child is None:
                break
            edge = len(child.tokens)
            matched = common_prefix_tokens(child.tokens, tokens[at : at + edge])
            at += matched
            node = child
            if stamps_all:
                node.stamp = clock
            if matched == edge:
                reusable += edge
                last_whole = node
        if last_whole is not None and not stamps_all:
            last_whole.stamp = clock
            changed(last_whole)
        return Walk(at, reusable, last_whole)

    def insert(self, tokens: np.ndarray) -> None:
        """Make room for one or two states and the new KV, then insert."""
        self.clock += 1
        walk = self.match(tokens)
        states = 2 if walk.prefix_tokens > walk.reusable_tokens else 1
        needed = states * paper.STATE_BYTES + (len(tokens) - walk.prefix_tokens) * paper.KV_BYTES_PER_TOKEN
        excess = self.used_bytes + needed - self.capacity_bytes
        if excess > 0:
            self.clock += 1
            self.evictor.evict(self, excess)
        self._attach(tokens)

    def serve(self, input_ids: np.ndarray, sequence: np.ndarray) -> int:
        """One request; `sequence` is input and output. Returns the prompt tokens that skip prefill."""
        hit = self.match_prompt(input_ids)
        self.insert(sequence)
        return hit

    def match_prompt(self, input_ids: np.ndarray) -> int:
        """A request's own match; returns the tokens that skip prefill."""
        walk = self.match(input_ids)
        self.matched_tokens += walk.prefix_tokens
        return walk.reusable_tokens

    def remove_leaf(self, node: ArtifactNode) -> None:
        """Drop a leaf, state and KV."""
        del node.parent.children[int(node.tokens[0])]
        self.num_nodes -= 1
        self.num_tokens -= len(node.tokens)
        self.evictions += 1
        if node.parent is not self.root:
            self.evictor.changed(node.parent)
        node.parent = None  # type: ignore[assignment]

    def merge_into_child(self, node: ArtifactNode) -> ArtifactNode:
        """Drop an inner node's state; its KV joins its only child, which takes its place and the later stamp."""
        (child,) = node.children.values()
        child.tokens = np.concatenate([node.tokens, child.tokens])
        child.stamp = max(child.stamp, node.stamp)
        child.parent = node.parent
        node.parent.children[int(child.tokens[0])] = child
        node.parent = None  # type: ignore[assignment]
        self.num_nodes -= 1
        self.evictions += 1
        self.evictor.changed(child)
        return child

    def _attach(self, tokens: np.ndarray) -> None:
        node, at = self.root, 0
        stamps_all, changed = self.evictor.stamps_whole_walk, self.evictor.changed
        while at < len(tokens):
            first = int(tokens[at])
            child = node.children.get(first)
            if child is None:
                leaf = ArtifactNode(tokens[at:], node, len(tokens), self.clock)
                node.children[first] = leaf
                self.num_nodes += 1
                self.num_tokens += len(leaf.tokens)
                changed(leaf)
                if node is not self.root:
                    changed(node)
                return
            matched = common_prefix_tokens(child.tokens, tokens[at : at + len(child.tokens)])
            at += matched
            if matched < len(child.tokens):
                child = self._split(child, matched)
            elif stamps_all:
                child.stamp = self.clock
            node = child

    def _split(self, lower: ArtifactNode, matched: int) -> ArtifactNode:
        parent = lower.parent
        upper = ArtifactNode(lower.tokens[:matched], parent, parent.total + matched, self.clock)
        parent.children[int(upper.tokens[0])] = upper
        lower.tokens = lower.tokens[matched:]
        lower.parent = upper
        upper.children[int(lower.tokens[0])] = lower
        self.num_nodes += 1
        self.evictor.changed(upper)
        self.evictor.changed(lower)
        return upper

    def nodes(self) -> list[ArtifactNode]:
        """All nodes but the root, depth first, children in insertion order."""
        return nodes_below(self.root)

    def check(self) -> None:
        """Recount from scratch."""
        for node in check_counts(self):
            assert node.total == node.parent.total + len(node.tokens), "wrong depth"
            assert node.parent.children[int(node.tokens[0])] is node, "filed under a wrong token"
