"""The corrected simulator: a radix tree, a capacity, an admission and an eviction policy.

A request is matched (at most prompt length − 1 tokens, since one must be computed), its path is pinned, its KV
inserted, and the states that admission asks for are offered to eviction. An answer's last token is sampled but
never fed back, so it has no KV. With concurrency c up to c requests hold their pins at once.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from marconi_ext.policies.admission import Offer
from marconi_ext.policies.currency import Currency
from marconi_ext.policies.interfaces import Admission, Eviction
from marconi_ext.policies.messages import TAIL_TOKENS
from marconi_ext.policies.runtime import PolicyRuntime
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


@dataclass(slots=True)
class _Running:
    pinned: Node
    state_row: int


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
        self._running: deque[_Running] = deque()
        self._leaf_heap: list[tuple[int, int, Node]] = []
        self._bounded_kv = capacity.bytes is not None or capacity.tokens is not None

    @property
    def tick(self) -> int:
        """Requests served so far."""
        return self.runtime.tick

    def serve(self, request: Request) -> Served:
        """Match, account, insert, save; returns what the request got."""
        self.runtime.tick += 1
        while len(self._running) >= self.concurrency:
            self._end(self._running.popleft())
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
        running = self._insert(request, look, served)
        if running is not None:
            path = self.records.path(running.pinned)
            for offer in self.admission.plan(facts):
                self._offer(path, offer)
            self._running.append(running)
        return Served(hit, held, lost)

    def finish(self) -> None:
        """End what runs, and audit the table."""
        while self._running:
            self._end(self._running.popleft())
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

    def _insert(self, request: Request, look: Lookup, served: int) -> _Running | None:
        sequence = np.concatenate([request.input_ids, request.output_ids[:-1]])
        start = look.path[-1] if look.path else None
        if self._bounded_kv:
            held = look.partial or start
            if held is not None:
                self.tree.pin(held)
            if served >= 0:
                self.table.pins[served] += 1
            new = len(sequence) - self.tree.lookup(sequence, start).kv_tokens
            fits = self._make_room(0, new)
            if held is not None:
                self.tree.unpin(held)
            if served >= 0:
                self.table.pins[served] -= 1
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
        if served >= 0:
            self.table.pins[served] += 1
        return _Running(done.node, served)

    def _end(self, running: _Running) -> None:
        self.tree.unpin(running.pinned)
        if running.state_row >= 0:
            self.table.pins[running.state_row] -= 1

    # --- states ------------------------------------------------------------------------------------------

    def _offer(self, path: list[Node], offer: Offer) -> None:
        """path: the nodes of the whole sequence; edges may have been split since"""
        if offer.depth_tokens > path[-1].depth_tokens or offer.depth_tokens <= 0:
            return
        if offer.spare and self._excess(1, 0):
            return
        at = bisect_left(path, offer.depth_tokens, key=attrgetter("depth_tokens"))
        node = self.tree.boundary(path[at], offer.depth_tokens, self.tick)
        row = row_of(node)
        if row < 0:
            row = self.records.record(node, node.depth_tokens, offer.kind)
        self.runtime.mark(row, offer)
        if self.table.live[row]:
            self.runtime.touch(row)
        elif self.runtime.offer(row, offer):
            if self._make_room(1, 0, newcomer=row):
                self.tree.set_state(node, row + 1)
                self.runtime.saved(row)
            else:
                self.runtime.refused(row)

    def _tend(self, node: Node) -> None:
        """Bring a node's facts in the table, and its place among the leaves, up to date."""
        if node is self.tree.root:
            return
        self.records.tend(node)
        if self._bounded_kv and node.is_leaf:
            heapq.heappush(self._leaf_heap, (node.last_tick, node.serial, node))

    # --- room --------------------------------------------------------------------------------------------

    def _excess(self, states: int, tokens: int) -> bool:
        cap, tree = self.capacity, self.tree
        if cap.bytes is not None:
            used = (tree.num_states + states) * self.currency.state_bytes
            return used + (tree.num_tokens + tokens) * self.currency.kv_bytes_per_token > cap.bytes
        over_slots = states > 0 and cap.slots is not None and tree.num_states + states > cap.slots
        over_tokens = tokens > 0 and cap.tokens is not None and tree.num_tokens + tokens > cap.tokens
        return over_slots or over_tokens

    def _make_room(self, states: int, tokens: int, newcomer: int = -1) -> bool:
        """Evict until so many states and KV tokens fit; False: refused, or all else is pinned."""
        while self._excess(states, tokens):
            if self._bounded_kv and (tokens or self.capacity.bytes is not None) and self._evict_dead_leaf():
                continue
            whole_leaves = self.capacity.bytes is None and tokens > 0
            victim = self._victim(newcomer, whole_leaves)
            if victim is None or victim == newcomer:
                return False
            node = self.records.node(victim)
            self.tree.drop_state(node)
            self.runtime.evicted(victim)
            if self._bounded_kv and node.is_leaf:
                heapq.heappush(self._leaf_heap, (-1, node.serial, node))  # its KV is dead weight: first to go
        return True

    def _victim(self, newcomer: int, whole_leaves: bool) -> int | None:
        max_fanout = self.runtime.max_fanout if self.capacity.bytes is not None else None
        if not whole_leaves and max_fanout is None:
            return self.runtime.victim_of_all(newcomer)
        rows = self.runtime.candidates(leaves=whole_leaves, max_fanout=max_fanout)
        if whole_leaves:  # a pinned leaf's state frees nothing of its KV
            rows = rows[[not self.records.node(row).pins for row in rows.tolist()]] if len(rows) else rows
            return self.runtime.leaf_victim(rows)
        return self.runtime.victim(rows, newcomer)

    def _evict_dead_leaf(self) -> bool:
        """Remove the oldest leaf without a state (no request can reuse its KV); False: there is none."""
        put_back, found = [], None
        heap = self._leaf_heap
        while heap:
            tick, serial, node = heapq.heappop(heap)
            if node.parent is None or not node.is_leaf or node.state is not None:
                continue
            if tick != node.last_tick and tick >= 0:
                heapq.heappush(heap, (node.last_tick, serial, node))
                continue
            if node.pins:
                put_back.append((tick, serial, node))
                continue
            found = node
            break
        for entry in put_back:
            heapq.heappush(heap, entry)
        if found is None:
            return False
        parent = found.parent
        self.records.forget(found)
        self.counts["kv_tokens_evicted"] += self.tree.remove_leaf(found)
        self._tend(parent)
        return True
