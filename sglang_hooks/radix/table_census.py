"""Whether the policy's table says what SGLang's tree holds: recounted from the tree, not from what was booked.

    live rows = states in the tree + those that requests will bring
    pins      = locks + pending, row by row
    pending   = the ledger's

A state that the table has forgotten can never be evicted again, and nothing else shows it: SGLang counts it as
evictable, and no slot is missing.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

from marconi_ext.policies.table.tree_rows import row_of

from ..node_states import holds_state

if TYPE_CHECKING:
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

    from .component import MarconiMambaComponent

_MAMBA = ComponentType.MAMBA
NODES_A_LOOK = 64  # between two looks at the clock
WALK_EVERY_S = 1.0
WALK_S = 0.0005  # about 500 nodes


class TableCensus:
    """Totals at any time, and the whole tree node by node, a few at a time. One per cache; single-threaded."""

    def __init__(self, mamba: MarconiMambaComponent) -> None:
        self._mamba = mamba
        self._left: deque[UnifiedTreeNode] = deque()
        self._found = 0
        self._due_s = 0.0
        self.walks = 0
        self.last_walk_found = 0

    def totals(self) -> dict[str, int]:
        """The sums, in microseconds. `differences`: between the two sides, now and in the last whole walk."""
        mamba = self._mamba
        live, states = mamba.runtime.table.num_live, self._states()
        coming, pending, held = len(mamba.held.coming()), len(mamba.held.claims), self._in_ledger()
        now = abs(live - states - coming) + abs(pending - held)
        return {
            "live_rows": live,
            "states": states,
            "coming": coming,
            "pending": pending,
            "pending_in_ledger": held,
            "walks": self.walks,
            "differences": now + self.last_walk_found,
        }

    def walk(self, budget_s: float) -> None:
        """Compare further nodes with their rows for `budget_s`. A node and its row agree at any time between two of the
        scheduler's steps, so a walk may take many, and the tree may change meanwhile."""
        until = time.perf_counter() + budget_s
        if not self._left:
            self._left.extend(self._mamba.tree_core.nodes())
            self._found = 0
        while self._left:
            for _ in range(min(NODES_A_LOOK, len(self._left))):
                node = self._left.popleft()
                self._found += self._mamba.tree_core.holds(node) and self._of_node(node) is not None
            if time.perf_counter() >= until:
                break
        if not self._left:
            self.walks += 1
            self.last_walk_found = self._found

    def walk_if_due(self) -> None:
        """A little more of the walk, unless that was done less than a second ago: after batches and while idle."""
        now_s = time.monotonic()
        if now_s >= self._due_s:
            self._due_s = now_s + WALK_EVERY_S
            self.walk(WALK_S)

    def differences(self) -> list[str]:
        """All of them, from the whole tree and the whole table: about 1 µs a node."""
        mamba = self._mamba
        table, held, found = mamba.runtime.table, mamba.held, []
        at_nodes = set()
        for node in self._mamba.tree_core.nodes():
            if (wrong := self._of_node(node)) is not None:
                found.append(wrong)
            at_nodes.add(row_of(node))
        for row in table.live_rows().tolist():
            if row not in at_nodes and row not in held.claims:
                found.append(f"row {row} is live: there is no node, and nobody brings its state")
        for row in table.rows().tolist():
            if row not in at_nodes and table.pins[row] != (row in held.claims):
                found.append(f"row {row} without a node: pins {table.pins[row]}")
        of_requests = {id(c) for c in mamba.ledger.all_pending() if c.row >= 0}
        if of_requests != {id(c) for c in held.claims.values()}:
            found.append(f"{len(held.claims)} checkpoints pending, {len(of_requests)} in the ledger")
        totals = self.totals()
        if totals["live_rows"] != totals["states"] + totals["coming"]:
            found.append(f"sums differ: {totals}")
        return found

    def _of_node(self, node: UnifiedTreeNode) -> str | None:
        """What is wrong with the node's row; None: nothing."""
        mamba, row, held = self._mamba, row_of(node), holds_state(node)
        if row < 0:
            return f"node {node.id} has a state and no row" if held else None
        table, pending = mamba.runtime.table, mamba.held.claims.get(row)
        if not table.in_use[row] or mamba.records.node(row) is not node:
            return f"node {node.id} has row {row}, which isn't its own"
        live = held or (pending is not None and pending.granted)
        if bool(table.live[row]) != live:
            return f"node {node.id}, row {row}: live in the table {bool(table.live[row])}, in the tree {live}"
        pins = node.component_data[_MAMBA].lock_ref + (pending is not None)
        return (
            None
            if table.pins[row] == pins
            else f"node {node.id}, row {row}: pins {table.pins[row]}, not {pins}"
        )

    def _states(self) -> int:
        return int(self._mamba.cache.mamba_evictable_size() + self._mamba.cache.mamba_protected_size())

    def _in_ledger(self) -> int:
        return sum(checkpoint.row >= 0 for checkpoint in self._mamba.ledger.all_pending())
