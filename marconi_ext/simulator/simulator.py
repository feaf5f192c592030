"""The corrected simulator: a radix tree, a capacity, an admission and an eviction policy.

A request is matched (at most prompt length − 1 tokens, since one must be computed), its path is pinned, its KV
inserted, and the states that admission asks for are offered to eviction. An answer's last token is sampled but
never fed back, so it has no KV. With concurrency c up to c requests hold their pins at once. Each
locks the state that it starts from until its own are offered.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from marconi_ext.policies.admission import Offer
from marconi_ext.policies.currency import Currency
from marconi_ext.policies.held_states import Claim, HeldStates, Placed
from marconi_ext.policies.interfaces import Admission, Eviction
from marconi_ext.policies.making_room import DeadLeaves, make_room_for_kv, make_room_for_state
from marconi_ext.policies.messages import TAIL_TOKENS
from marconi_ext.policies.runtime import PolicyRuntime
from marconi_ext.policies.table.checkpoints import Kind
from marconi_ext.policies.table.tree_rows import FEW_NODES, TreeRecords, row_of
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.radix_tree import Lookup, Node, RadixTree
from marconi_ext.traces import Request


@dataclass(frozen=True, slots=True)
class Served:
    """What one request got. `lost` maps a cause to tokens between the KV held and the state that served."""

    hit_tokens: int
    kv_tokens: int
    lost: dict[str, int]


class Simulator:
    """`serve` requests in order, then `finish`. Counters are read from `tree`, `table` and `counts`."""

    def __init__(
        self,
        capacity: Capacity,
        admission: Admission,
        eviction: Eviction,
        currency: Currency,
        concurrency: int = 1,
    ) -> None:
        self.capacity = capacity
        self.runtime = PolicyRuntime(admission, eviction, currency)
        self.admission = admission
        self.eviction = eviction
        self.currency = currency
        self.concurrency = concurrency
        self.tree = RadixTree()
        self.table = self.runtime.table
        self.counts = self.runtime.counts
        self.records = TreeRecords(self.runtime, lambda node: len(node.tokens))
        self.held = HeldStates(self.runtime, self.records, None, self.tree)
        self.running: deque[Node] = deque()  # of each request, the end of its path
        self._dead_leaves = DeadLeaves(
            lambda node: node.serial, self.tree.dead_leaf_may_go, lambda node: node.last_tick
        )
        self._bounded_kv = capacity.bytes is not None or capacity.tokens is not None

    @property
    def tick(self) -> int:
        """Requests served so far."""
        return self.runtime.tick

    def serve(self, request: Request) -> Served:
        """Match, account, insert, save; returns what the request got."""
        self.runtime.tick += 1
        while len(self.running) >= self.concurrency:
            self.tree.unpin(self.running.popleft())
        prompt = request.input_ids
        look = self.tree.lookup(prompt[: len(prompt) - 1])
        path = [node.record for node in look.path if node.record is not None]
        served = look.state_node.record if look.state_node is not None else -1
        hit, held = look.state_tokens, look.kv_tokens
        parted = held
        if look.diverges and look.partial is not None:  # between two nodes: nobody has parted there
            parted = int(self.table.depth[path[-1]]) if path else 0
        lost = self.runtime.causes(path, hit_tokens=hit, kv_tokens=held, parted_tokens=parted)
        for node in look.path:
            node.last_tick = self.tick
        if look.partial is not None:
            look.partial.last_tick = self.tick
        self.runtime.use(path, served)
        facts = self.runtime.facts(
            path,
            prompt_tokens=len(prompt),
            sequence_tokens=len(prompt) + max(len(request.output_ids) - 1, 0),
            hit_tokens=hit,
            kv_tokens=held,
            diverges=look.diverges,
            boundaries=request.boundaries,
            tokens=prompt,
            below=self._below(look),
        )
        end = self._insert(request, look)
        if end is not None:
            path, prompt_class, ends_at = self.records.path(end), 0, -1
            answer = request.output_ids
            last = answer.item(-2) if len(answer) > 1 else prompt.item(-1)  # with KV
            for offer in self.admission.plan(facts):
                is_last = offer.kind == Kind.LAST_TOKEN
                depth = offer.depth_tokens
                if is_last and not self.runtime.answered(prompt_class, last, depth, ends_at):
                    continue
                row = self._offer(path, offer)
                if offer.prompt_tokens:
                    prompt_class, ends_at = offer.prompt_class, row
            self._unlock(look.state_node)  # its states are saved by the batch that has copied this one
            self.running.append(end)
        return Served(hit, held, lost)

    def finish(self) -> None:
        """End what runs, and audit the table."""
        while self.running:
            self.tree.unpin(self.running.popleft())
        self.check()

    def check(self) -> None:
        """Recount tree, table and what links them; nothing may exceed the capacity."""
        self.tree.check()
        self.table.check()
        live = 0
        for node in self.tree.nodes():
            assert (node.state is not None) == (
                node.record is not None and bool(self.table.live[node.record])
            )
            live += node.state is not None
            if node.record is not None:
                assert (
                    self.records.node(node.record) is node
                    and self.table.depth[node.record] == node.depth_tokens
                )
                leaf_tokens = len(node.tokens) if node.is_leaf else 0
                assert self.table.leaf_tokens[node.record] == leaf_tokens, f"leaf tokens of {node}"
                assert self.table.fanout[node.record] == len(node.children), f"fan-out of {node}"
        assert live == self.table.num_live
        assert not self._excess(0, 0), "over capacity"

    # --- one request -------------------------------------------------------------------------------------

    def _below(self, look: Lookup) -> list[int]:
        """Rows within a few tokens of where the prompt parts from what is held."""
        ways = [look.partial] if look.partial is not None else []
        if look.partial is None and look.path and len(look.path[-1].children) <= FEW_NODES:
            ways = list(look.path[-1].children.values())
        depths = [(node, node.depth_tokens - look.kv_tokens) for node in ways]
        return self.records.near(depths, TAIL_TOKENS + 1)

    def _insert(self, request: Request, look: Lookup) -> Node | None:
        """The end of the request's path, pinned, with the state that it starts from locked; None: it is too large."""
        sequence = np.concatenate([request.input_ids, request.output_ids[:-1]])
        start = look.path[-1] if look.path else None
        if self._bounded_kv:
            held = look.partial or start
            if held is not None:
                self.tree.pin(held)
            self._lock(look.state_node)

            def is_short() -> bool:  # what leaves may be of this sequence, behind its match
                return self._excess(0, len(sequence) - self.tree.lookup(sequence, start).kv_tokens)

            fits = make_room_for_kv(self, is_short, shared=self._shared)
            if held is not None:
                self.tree.unpin(held)
            self._unlock(look.state_node)
            if not fits:
                self.counts["requests_too_large"] += 1
                return None
        done = self.tree.insert(sequence, self.tick, start)
        self._tend(done.node)
        self._tend(done.node.parent)
        if done.upper is not None:
            self._tend(done.upper)
            for child in done.upper.children.values():
                self._tend(child)
        self.tree.pin(done.node)
        self._lock(look.state_node)
        return done.node

    # --- states ------------------------------------------------------------------------------------------

    def _offer(self, path: list[Node], offer: Offer) -> int:
        """path: the nodes of the whole sequence; edges may have been split since. Returns: the row; -1: it has none"""
        if offer.depth_tokens > path[-1].depth_tokens or offer.depth_tokens <= 0:
            return -1
        if offer.spare and not self.is_free():  # not even a node is made for it
            return -1
        at = bisect_left(path, offer.depth_tokens, key=attrgetter("depth_tokens"))
        node = self.tree.boundary(path[at], offer.depth_tokens, self.tick)
        row = row_of(node)
        if row < 0:
            row = self.records.record(node, node.depth_tokens, offer.kind)
        self.runtime.mark(row, offer)
        claim = Claim(row=row)
        if self.held.place(claim, offer, self) is Placed.GRANTED:
            self.tree.set_state(node, row + 1)
            self.held.arrived(node, node.depth_tokens, offer.kind, is_new=True, claim=claim)
        return row_of(node)

    def _tend(self, node: Node) -> None:
        """Bring a node's facts in the table, and its place among the leaves, up to date."""
        if node is self.tree.root:
            return
        self.records.tend(node)
        if self._bounded_kv and node.is_leaf:
            self._dead_leaves.add(node)

    def _lock(self, node: Node | None) -> None:
        if node is not None:
            self.tree.lock(node)
            self.held.locks_changed(node)

    def _unlock(self, node: Node | None) -> None:
        if node is not None:
            self.tree.unlock(node)
            self.held.locks_changed(node)

    # --- room --------------------------------------------------------------------------------------------

    @property
    def _shared(self) -> bool:
        return self.capacity.bytes is not None

    def is_free(self) -> bool:
        """Whether a state fits with nothing evicted."""
        return not self._excess(1, 0)

    def take(self, claim: Claim) -> str | None:
        """Room for a state."""
        fits = make_room_for_state(self, lambda: self._excess(1, 0), shared=self._shared, newcomer=claim.row)
        return None if fits else "worth-less"

    def _excess(self, states: int, tokens: int) -> bool:
        cap, tree = self.capacity, self.tree
        if cap.bytes is not None:
            used = (tree.num_states + states) * self.currency.state_bytes
            return used + (tree.num_tokens + tokens) * self.currency.kv_bytes_per_token > cap.bytes
        over_slots = states > 0 and cap.slots is not None and tree.num_states + states > cap.slots
        over_tokens = tokens > 0 and cap.tokens is not None and tree.num_tokens + tokens > cap.tokens
        return over_slots or over_tokens

    # --- what leaves, as `make_room_for_kv` and `make_room_for_state` ask for it --------------------------

    def dead_leaf(self, *, unwanted: bool = False) -> Node | None:
        """The leaf without a state that was used longest ago; where one is planned its path is pinned."""
        return self._dead_leaves.pop()

    def coldest_leaf(self) -> Node | None:
        """The leaf with a state that the policy values least."""
        rows = self.runtime.candidates(leaves=True)
        if len(rows):  # a pinned leaf's state frees nothing of its KV
            rows = rows[[not self.records.node(row).pins for row in rows.tolist()]]
        victim = self.runtime.leaf_victim(rows)
        return None if victim is None else self.records.node(victim)

    def least_valuable(self, newcomer: int = -1) -> int | None:
        """The row to evict, or `newcomer`."""
        most = self.runtime.max_fanout if self._shared else None
        if most is None:
            return self.runtime.victim_of_all(newcomer)
        return self.runtime.victim(self.runtime.candidates(max_fanout=most), newcomer)

    def take_leaf(self, leaf: Node) -> None:
        """The leaf leaves, with its state if it has one."""
        parent = leaf.parent
        if leaf.state is not None:
            self._drop_state(leaf)
        self.held.node_leaves(leaf)
        self.counts["kv_tokens_evicted"] += self.tree.remove_leaf(leaf)
        self._tend(parent)

    def take_state(self, row: int) -> None:
        """The state at this row leaves; a leaf's KV, dead weight now, is the first to follow."""
        node = self.records.node(row)
        self._drop_state(node)
        if self._bounded_kv and node.is_leaf:
            self._dead_leaves.add(node, first=True)

    def _drop_state(self, node: Node) -> None:
        self.tree.drop_state(node)
        self.held.left(node, "evicted")
