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
from marconi_ext.policies.currency import Currency
from marconi_ext.policies.interfaces import Admission, Eviction
from marconi_ext.policies.messages import MessageHeaders
from marconi_ext.policies.paper.background import Tuner
from marconi_ext.policies.request_plan import Match, Plan, Serving
from marconi_ext.policies.runtime import PolicyRuntime
from marconi_ext.policies.table.checkpoints import Kind
from marconi_ext.policies.table.tree_rows import TreeRecords, row_of
from marconi_ext.simulator.radix_tree import Node, RadixTree
from marconi_ext.simulator.simulator import Served


@dataclass(slots=True)
class _Pending:
    """A state that the running request saves. row: -1 once the node that it was planned at has gone"""

    offer: Offer
    row: int


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
        self.tree = RadixTree()
        self.runtime = PolicyRuntime(admission, eviction, currency)
        self.records = TreeRecords(self.runtime, lambda node: len(node.tokens))
        self.serving = Serving(self.runtime, self.records, kinds)
        self.serving.headers = headers or MessageHeaders()
        self._pending: list[_Pending] = []
        self._held_slots = 0  # by the running request, its own and those of states not published yet
        self._held_tokens = 0  # KV that is not in the tree yet

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
        locked = self._publish(plan, prompt)
        self._take_tokens(max(len(output) - 1, 0))
        self._finish(plan, np.concatenate([prompt, output[:-1]]))
        self._unlock(locked)
        return Served(match.hit_tokens, plan.match.kv_tokens, plan.lost)

    def check(self) -> None:
        """Recount the tree and the table; while nothing runs."""
        self.tree.check()
        table = self.runtime.table
        table.check()
        assert self._held_slots == self._held_tokens == 0, "the last request left something behind"
        assert not table.pins.any(), "a state is still pinned"
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
        row, table = self.serving.row_for(plan, offer), self.runtime.table
        if table.live[row]:
            self.runtime.touch(row)
            return
        if offer.spare and not self._fits(1, 0):
            return
        if not self.runtime.offer(row, offer):
            return
        table.pins[row] += 1
        if not self._take_slot(row):
            table.pins[row] -= 1
            self.runtime.refused(row)
            return
        self.runtime.saved(row)
        self._pending.append(_Pending(offer, row))

    def _publish(self, plan: Plan, prompt: np.ndarray) -> Node | None:
        """Insert what was saved, shallow first; the request's lock moves to the deepest."""
        locked, table = plan.match.served, self.runtime.table
        for pending in self._pending:
            offer, node = pending.offer, self._insert(prompt[: pending.offer.depth_tokens])
            if pending.row >= 0:
                held = self.serving.settle(plan, pending.row, node)
                assert held == pending.row, "alone, nobody is first"
                table.pins[pending.row] -= 1
            else:
                self._save(node, offer)
            self.tree.set_state(node, True)
            self._held_slots -= 1
            self._lock(node)
            self._unlock(locked)
            locked = node
        self._pending.clear()
        self._held_tokens = len(prompt) - (locked.depth_tokens if locked is not None else 0)
        return locked

    def _finish(self, plan: Plan, sequence: np.ndarray) -> None:
        node = self._insert(sequence)
        self._held_tokens = 0
        self._held_slots -= 1
        row, wanted = row_of(node), self.serving.saves_last_token(plan, len(sequence))
        if row >= 0 and self.runtime.table.live[row]:
            self.runtime.touch(row)
        elif wanted:
            self._save(node, Offer(len(sequence), Kind.LAST_TOKEN))
            self.tree.set_state(node, True)
        for homeless, depth in sorted(plan.homeless.items(), key=lambda item: item[1]):
            below = self.tree.boundary(node, depth, self.runtime.tick)
            for child in below.children.values():
                self.records.tend(child)
            self.serving.settle(plan, homeless, below)
        self.serving.end(plan)

    def _save(self, node: Node, offer: Offer) -> None:
        """A state without a row of its own, planned or not: the table learns of it now."""
        row = row_of(node)
        if row < 0:
            row = self.records.record(node, offer.depth_tokens, offer.kind)
        self.runtime.offer(row, offer)
        self.runtime.saved(row)

    def _insert(self, sequence: np.ndarray) -> Node:
        done = self.tree.insert(sequence, self.runtime.tick)
        self.records.tend(done.node)
        self.records.tend(done.node.parent)
        if done.upper is not None:
            for child in done.upper.children.values():
                self.records.tend(child)
        return done.node

    def _lock(self, node: Node | None) -> None:
        if node is not None:
            self.tree.pin(node)
            self.runtime.table.pins[row_of(node)] += 1

    def _unlock(self, node: Node | None) -> None:
        if node is not None:
            self.tree.unpin(node)
            self.runtime.table.pins[row_of(node)] -= 1

    # --- room --------------------------------------------------------------------------------------------

    def _fits(self, states: int, tokens: int) -> bool:
        states += self.tree.num_states + self._held_slots
        tokens += self.tree.num_tokens + self._held_tokens
        if self.shared_bytes is None:
            return states <= self.slots and tokens <= self.tokens
        price = self.runtime.currency
        return states * price.state_bytes + tokens * price.kv_bytes_per_token <= self.shared_bytes

    def _take_slot(self, newcomer: int = -1) -> bool:
        """A slot for the request itself, or for the state at row `newcomer`; False: refused, or all are pinned."""
        while not self._fits(1, 0):
            if self.shared_bytes is not None and (dead := self._dead_leaf(planned=False)):
                self._remove(dead)
                continue
            victim = self._least_valuable(newcomer)
            if victim is None or victim == newcomer:
                return False
            self._evict_state(victim)
        self._held_slots += 1
        return True

    def _least_valuable(self, newcomer: int = -1) -> int | None:
        if self.shared_bytes is not None:
            return self.runtime.victim_in_bytes(newcomer)
        return self.runtime.victim_of_all(newcomer)

    def _evict_state(self, row: int) -> None:
        self.tree.drop_state(self.records.node(row))
        self.runtime.evicted(row)

    def _take_tokens(self, tokens: int) -> None:
        self._make_room(tokens)
        self._held_tokens += tokens

    def _make_room(self, tokens: int) -> None:
        while not self._fits(0, tokens):
            leaf = self._dead_leaf()
            if leaf is None and self.shared_bytes is not None:
                victim = self._least_valuable()
                if victim is not None:
                    self._evict_state(victim)
                    continue
            leaf = leaf or self._coldest_leaf()
            if leaf is None:
                raise ValueError(f"tokens: {tokens} more don't fit, and all else is in use")
            if leaf.state is not None:
                self._evict_state(row_of(leaf))
            self._remove(leaf)

    def _remove(self, leaf: Node) -> None:
        parent = leaf.parent
        for pending in self._pending:  # its state is published at a new node
            if pending.row >= 0 and pending.row == row_of(leaf):
                self.runtime.table.pins[pending.row] -= 1
                pending.row = -1
        self.records.forget(leaf)
        self.tree.remove_leaf(leaf)
        self.records.tend(parent)

    def _free_leaves(self) -> list[Node]:
        return [node for node in self.tree.nodes() if node.is_leaf and not node.pins]

    def _dead_leaf(self, *, planned: bool = True) -> Node | None:
        """The oldest leaf without a state, which serves nobody. planned: including those where one is planned"""
        pins = self.runtime.table.pins
        dead = [node for node in self._free_leaves() if node.state is None]
        if not planned:
            dead = [node for node in dead if row_of(node) < 0 or not pins[row_of(node)]]
        return min(dead, key=lambda node: node.serial, default=None)

    def _coldest_leaf(self) -> Node | None:
        """The leaf with a state that the policy values least."""
        victim = self.runtime.leaf_victim()
        if victim is not None and self.records.node(victim).pins:
            rows = sorted(row_of(node) for node in self._free_leaves())
            victim = self.runtime.leaf_victim(np.array(rows, np.int64))
        return None if victim is None else self.records.node(victim)
