"""The live engine's rules, one request at a time: what `marconi verify` compares the engine with.

Differs from `Simulator` where a server differs: a running request holds a slot of its own, states are planned
before the prompt's KV is in the tree, KV is held twice while a prefill recomputes it, matching splits edges, and
the last token's state is the running slot itself, which needs no room. Pages of one token; a prompt is prefilled
in one piece.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from marconi_ext.policies.admission import Offer
from marconi_ext.policies.answer_grid import places
from marconi_ext.policies.currency import Currency
from marconi_ext.policies.held_states import Claim, HeldStates, Placed
from marconi_ext.policies.interfaces import Admission, Eviction
from marconi_ext.policies.making_room import DeadLeaves, make_room_for_kv, make_room_for_state
from marconi_ext.policies.messages import MessageHeaders
from marconi_ext.policies.paper.background import Tuner
from marconi_ext.policies.request_plan import Match, Plan, Serving
from marconi_ext.policies.runtime import PolicyRuntime
from marconi_ext.policies.table.checkpoints import Kind
from marconi_ext.policies.table.tree_rows import TreeRecords, row_of
from marconi_ext.simulator.radix_tree import Node, RadixTree
from marconi_ext.simulator.simulator import Served


@dataclass(eq=False, kw_only=True)
class _Pending(Claim):
    """A state that the running request saves."""

    offer: Offer


class LiveRules:
    """slots: rows of the state pool; tokens: KV pool; currency: as the engine reports it.

    tuner: for a policy that tunes in the background; None: one that tunes does so on the spot
    shared_bytes: one buffer for states and KV, at the currency's prices, in place of the two pools
    headers: of the server's chat template
    """

    def __init__(
        self,
        slots: int,
        tokens: int,
        admission: Admission,
        eviction: Eviction,
        currency: Currency,
        kinds: Collection[Kind] = tuple(Kind),
        tuner: Tuner | None = None,
        shared_bytes: int | None = None,
        headers: MessageHeaders | None = None,
    ) -> None:
        self.tuner = tuner
        self.shared_bytes = shared_bytes
        self.slots = slots
        self.tokens = tokens
        self.kinds = frozenset(kinds)
        self.runtime = PolicyRuntime(admission, eviction, currency)
        self.records = TreeRecords(self.runtime, lambda node: len(node.tokens))
        self.serving = Serving(self.runtime, self.records, kinds)
        self.serving.headers = headers or MessageHeaders()
        self._empty()
        self._pending: list[_Pending] = []
        self._held_slots = 0  # by the running request, its own and those of states not published yet
        self._held_tokens = 0  # KV that is not in the tree yet

    def _empty(self) -> None:
        self.tree = RadixTree()
        self.held = HeldStates(self.runtime, self.records, self.serving, self.tree)
        self._dead_leaves = DeadLeaves(lambda node: node.serial, self.tree.dead_leaf_may_go)

    def flush(self) -> None:
        """Forget all KV and states, while nothing runs; what was learned stays."""
        self.held.clear()
        self._empty()

    def serve(self, prompt: np.ndarray, output: np.ndarray) -> Served:
        """One request from its match to its end. Raises ValueError if it can't fit even in an empty cache."""
        match = self._match(prompt)
        self._lock(match.served)
        if not self._take_slot():
            raise ValueError("slots: no room for a running request")
        self._take_tokens(len(prompt) - match.hit_tokens)
        plan = self.serving.begin(match)
        if self.tuner is not None:
            self.tuner.step(self.runtime.tick)
        for offer in plan.offers:
            self._offer(plan, offer)
        if len(output) > 1:  # overlap: room for the first decode is made before the prefill's result is seen
            self._make_room(1)
        below = self._publish(plan, prompt)
        sequence = np.concatenate([prompt, output[:-1]])
        self._decode(plan, len(prompt), len(sequence))
        self._finish(plan, sequence)
        if below is not None:
            self.tree.unpin(below)
        return Served(match.hit_tokens, plan.match.kv_tokens, plan.lost)

    def check(self) -> None:
        """Recount the tree and the table; while nothing runs."""
        self.tree.check()
        table = self.runtime.table
        table.check()
        assert self._held_slots == self._held_tokens == 0, "the last request left something behind"
        assert not self.held.claims and not table.pins.any(), "a state is still pinned"
        assert self.tree.num_states == table.num_live, "states miscounted"
        assert self._fits(0, 0), "more than the pools have"
        for node in self.tree.nodes():
            row = row_of(node)
            assert (node.state is not None) == (row >= 0 and bool(table.live[row])), f"{node} and row {row}"
            if row >= 0:
                assert table.depth[row] == node.depth_tokens, f"depth of {node}"
                assert table.fanout[row] == len(node.children), f"fan-out of {node}"

    # --- a request's stages ------------------------------------------------------------------------------

    def _match(self, prompt: np.ndarray) -> Match:
        look = self.tree.lookup(prompt[:-1])
        last = look.path[-1] if look.path else self.tree.root
        if look.partial is not None:
            last = self.tree.boundary(look.partial, look.kv_tokens, self.runtime.tick)
            self.records.tend(look.partial)
        ahead = last.children.get(int(prompt[-1])) if look.kv_tokens == len(prompt) - 1 else None
        path = [(node.depth_tokens, node) for node in self.records.path(last)]
        return Match(path, look.state_node, len(prompt), look.state_tokens, ahead, prompt)

    def _offer(self, plan: Plan, offer: Offer) -> None:
        pending = _Pending(row=self.serving.row_for(plan, offer), plan=plan, offer=offer)
        if self.held.place(pending, offer, self) is Placed.GRANTED:
            self._pending.append(pending)

    def _publish(self, plan: Plan, prompt: np.ndarray) -> Node | None:
        """Insert what was saved, shallow first. The request lets go of its state, which it has copied, and keeps the KV
        down to the deepest. Returns: the node there; None: it keeps nothing."""
        self._release_state(plan.match.served)
        deepest = plan.match.served
        for pending in self._pending:
            node = self._bring(pending, prompt)
            self.tree.pin(node)
            if deepest is not None:
                self.tree.unpin(deepest)
            deepest = node
        self._pending.clear()
        self._held_tokens = len(prompt) - (deepest.depth_tokens if deepest is not None else 0)
        return deepest

    def _bring(self, pending: _Pending, sequence: np.ndarray) -> Node:
        """A state that was saved enters the tree. Returns: its node."""
        offer = pending.offer
        node = self._insert(sequence[: offer.depth_tokens])
        is_new = node.state is None
        if is_new:
            self.tree.set_state(node, True)
        self.held.arrived(node, offer.depth_tokens, offer.kind, is_new=is_new, claim=pending)
        self._held_slots -= 1
        return node

    def _decode(self, plan: Plan, prompt_tokens: int, sequence_tokens: int) -> None:
        """KV for the answer, and a slot for a state inside it, which goes along."""
        reached, inside = prompt_tokens, _Pending(plan=plan, offer=Offer(0, Kind.IN_ANSWER))
        for depth in places(prompt_tokens, sequence_tokens, plan.answer_grid):
            self._take_tokens(depth - reached)
            reached, inside.offer = depth, Offer(depth, Kind.IN_ANSWER)
            self.held.place_inside_answer(inside, depth, self)
        if inside.granted:
            self._pending.append(inside)
        self._take_tokens(sequence_tokens - reached)

    def _finish(self, plan: Plan, sequence: np.ndarray) -> None:
        for inside in self._pending:
            self._bring(inside, sequence)
        self._pending.clear()
        node = self._insert(sequence)
        self._held_tokens = 0
        self._held_slots -= 1
        is_new = node.state is None
        if self.serving.saves_last_token(plan, len(sequence), sequence.item(-1)) and is_new:
            self.tree.set_state(node, True)
        if node.state is not None:
            self.held.arrived(node, len(sequence), Kind.LAST_TOKEN, is_new=is_new)
        for homeless, depth in sorted(plan.homeless.items(), key=lambda item: item[1]):
            below = self.tree.boundary(node, depth, self.runtime.tick)
            for child in below.children.values():
                self.records.tend(child)
            self.serving.settle(plan, homeless, below)
        self.serving.end(plan)

    def _insert(self, sequence: np.ndarray) -> Node:
        done = self.tree.insert(sequence, self.runtime.tick)
        self.records.tend(done.node)
        self.records.tend(done.node.parent)
        self._note_dead(done.node)
        if done.upper is not None:
            for child in done.upper.children.values():
                self.records.tend(child)
        return done.node

    def _lock(self, node: Node | None) -> None:
        if node is not None:
            self.tree.pin(node)
            self.tree.lock(node)
            self.held.locks_changed(node)

    def _release_state(self, node: Node | None) -> None:
        if node is not None:
            self.tree.unlock(node)
            self.held.locks_changed(node)

    # --- room --------------------------------------------------------------------------------------------

    def is_free(self) -> bool:
        """Whether a slot is."""
        return self._fits(1, 0)

    def take(self, claim: Claim) -> str | None:
        """A slot for a state."""
        return None if self._take_slot(claim.row) else "worth-less"

    def _fits(self, states: int, tokens: int) -> bool:
        states += self.tree.num_states + self._held_slots
        tokens += self.tree.num_tokens + self._held_tokens
        if self.shared_bytes is None:
            return states <= self.slots and tokens <= self.tokens
        price = self.runtime.currency
        return states * price.state_bytes + tokens * price.kv_bytes_per_token <= self.shared_bytes

    def _take_slot(self, newcomer: int = -1) -> bool:
        """A slot for the request itself, or for the state at row `newcomer`; False: refused, or all are pinned."""
        found = make_room_for_state(
            self, lambda: not self._fits(1, 0), shared=self.shared_bytes is not None, newcomer=newcomer
        )
        self._held_slots += found
        return found

    def _take_tokens(self, tokens: int) -> None:
        self._make_room(tokens)
        self._held_tokens += tokens

    def _make_room(self, tokens: int) -> None:
        shared = self.shared_bytes is not None
        if not make_room_for_kv(self, lambda: not self._fits(0, tokens), shared=shared):
            raise ValueError(f"tokens: {tokens} more don't fit, and all else is in use")

    # --- what leaves, as `make_room_for_kv` and `make_room_for_state` ask for it --------------------------

    def dead_leaf(self, *, unwanted: bool = False) -> Node | None:
        """The oldest leaf without a state. unwanted: none at which a state is planned"""
        return self._dead_leaves.pop(self.held.is_wanted) if unwanted else self._dead_leaves.pop()

    def coldest_leaf(self) -> Node | None:
        """The leaf with a state that the policy values least."""
        victim = self.runtime.leaf_victim()
        if victim is not None and self.records.node(victim).pins:
            rows = sorted(row_of(node) for node in self.tree.nodes() if node.is_leaf and not node.pins)
            victim = self.runtime.leaf_victim(np.array(rows, np.int64))
        return None if victim is None else self.records.node(victim)

    def least_valuable(self, newcomer: int = -1) -> int | None:
        """The row to evict, or `newcomer`."""
        if self.shared_bytes is not None:
            return self.runtime.victim_in_bytes(newcomer)
        return self.runtime.victim_of_all(newcomer)

    def take_leaf(self, leaf: Node) -> None:
        """The leaf leaves, with its state if it has one."""
        parent = leaf.parent
        if leaf.state is not None:
            self._drop_state(leaf)
        self.held.node_leaves(leaf)
        self.tree.remove_leaf(leaf)
        self.records.tend(parent)
        self._note_dead(parent)

    def take_state(self, row: int) -> None:
        """The state at this row leaves."""
        node = self.records.node(row)
        self._drop_state(node)
        self._note_dead(node)

    def _drop_state(self, node: Node) -> None:
        self.tree.drop_state(node)
        self.held.left(node, "evicted")

    def _note_dead(self, node: Node) -> None:
        if node is not self.tree.root and node.is_leaf and node.state is None:
            self._dead_leaves.add(node)
