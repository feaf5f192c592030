"""The one place where the policy's table learns that a state is planned, arrived in the tree, left it, or is locked.

What is true after every call, of every row of the table:

    live = its node holds a state on the device, or a request has a slot for one that it will bring
    pins = locks on its node's state + 1 where a request plans one

Both are worked out from the tree and from the pending checkpoints each time, never counted up and down, so that it
doesn't matter in which order requests finish, are retracted or aborted, and states are evicted or loaded back.
`table_census.py` recounts it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

from marconi_ext.policies.admission import Offer
from marconi_ext.policies.table.checkpoints import Kind
from marconi_ext.policies.table.tree_rows import TreeRecords, row_of

from ..policy import kind_name

if TYPE_CHECKING:
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

    from marconi_ext.policies.request_plan import Serving
    from marconi_ext.policies.runtime import PolicyRuntime

    from ..observe.stats import CacheStats
    from .ledger import PendingCheckpoint

_MAMBA = ComponentType.MAMBA


class Gone(NamedTuple):
    """Why a row's state isn't there. born: the row's, so that another row's in the same place isn't taken for it;
    tick: the request at which it went, or was refused; reason: for operators"""

    born: int
    tick: int
    reason: str


def holds_state(node: UnifiedTreeNode | None) -> bool:
    """Whether a state is at the node, on the device."""
    return node is not None and node.component_data[_MAMBA].value is not None


class HeldStates:
    """Which rows have a state, or will have one. Single-threaded; one per cache.

    pending: checkpoint by the row that it is planned at; one without a slot yet only pins its row
    """

    def __init__(
        self, runtime: PolicyRuntime, records: TreeRecords, serving: Serving, stats: CacheStats
    ) -> None:
        self.runtime, self.records, self.serving, self.stats = runtime, records, serving, stats
        self.pending: dict[int, PendingCheckpoint] = {}
        self._gone: dict[int, Gone] = {}  # by row, so no more than the table has rows

    # ---- a checkpoint that a request plans ----

    def reserve(self, checkpoint: PendingCheckpoint) -> None:
        """The request looks for a slot for its checkpoint, whose row is kept until `planned` or `abandon`."""
        self.pending[checkpoint.row] = checkpoint
        self._pin(checkpoint.row)

    def planned(self, checkpoint: PendingCheckpoint, slot: Any) -> None:
        """The reserved checkpoint has its slot."""
        checkpoint.slot = slot
        if checkpoint.row >= 0 and not self.runtime.table.live[checkpoint.row]:
            self.runtime.saved(checkpoint.row)

    def abandon(self, checkpoint: PendingCheckpoint, reason: str) -> None:
        """There will be no such state: no slot was to be had, or the request was aborted or retracted.

        A state that came to the same node by other means meanwhile stays what it is.
        """
        row = self._settled(checkpoint)
        if row >= 0 and not holds_state(self.records.node(row)):
            self.runtime.refused(row)
            self._note(row, reason)

    # ---- a state in the tree ----

    def arrived(
        self,
        node: UnifiedTreeNode,
        depth_tokens: int,
        kind: Kind,
        *,
        is_new: bool,
        checkpoint: PendingCheckpoint | None = None,
    ) -> None:
        """The tree has a state at `node`. is_new: it wasn't there before; checkpoint: what brought it, if planned."""
        runtime, row = self.runtime, row_of(node)
        if checkpoint is not None:
            planned_at = self._settled(checkpoint)
            if planned_at >= 0:
                assert checkpoint.plan is not None, "a planned row has its plan"
                row = self.serving.settle(checkpoint.plan, planned_at, node)
        if row < 0:
            row = self.records.record(node, depth_tokens, kind)
        if not runtime.table.live[row]:
            runtime.offer(row, Offer(depth_tokens, kind))
            runtime.saved(row)
        elif not is_new:
            runtime.touch(row)
        if is_new:
            self.stats.saved(kind_name(runtime.table.kind.item(row)))
        self._pin(row)

    def left(self, node: UnifiedTreeNode, reason: str) -> None:
        """The state that was at `node` isn't on the device any more. reason: as `CacheStats.evicted`"""
        row, table = row_of(node), self.runtime.table
        if row < 0:
            return
        self.stats.evicted(kind_name(table.kind.item(row)), reason)
        self._note(row, reason)
        planned = self.pending.get(row)
        if planned is None or planned.slot is None:  # else a request brings one again
            self.runtime.evicted(row)

    def locks_changed(self, node: UnifiedTreeNode) -> None:
        """Requests hold the node's state more or less often than before, or the node has only now got its row."""
        row = row_of(node)
        if row >= 0:
            self._pin(row)

    def why_gone(self, row: int) -> Gone | None:
        """Why there is no state at this row; None: nothing is known."""
        gone = self._gone.get(row)
        return gone if gone is not None and gone.born == self.runtime.table.born.item(row) else None

    def node_leaves(self, node: UnifiedTreeNode) -> None:
        """The node is about to leave the tree, and its record with it. A state planned there finds a node later."""
        checkpoint = self.pending.get(row_of(node))
        if checkpoint is not None:
            self._settled(checkpoint)
            checkpoint.row = -1
        self.records.forget(node)

    def clear(self) -> None:
        """The tree was reset, and the pools with it."""
        self.pending.clear()
        self._gone.clear()
        self.records.clear()
        self.runtime.forget_all()

    def by_kind(self) -> dict[str, int]:
        """States in the tree, by kind."""
        kind = self.runtime.table.kind
        counts = Counter(kind[self.runtime.table.live_rows()].tolist())
        counts.subtract(kind.item(row) for row in self.coming())
        return {kind_name(kind): count for kind, count in sorted(counts.items()) if count}

    def coming(self) -> list[int]:
        """Rows that have no state yet, and a request with a slot for one."""
        return [
            row
            for row, checkpoint in self.pending.items()
            if checkpoint.slot is not None and not holds_state(self.records.node(row))
        ]

    # -----------------------------------------------------------------------------------------------------

    def _note(self, row: int, reason: str) -> None:
        self._gone[row] = Gone(self.runtime.table.born.item(row), self.runtime.tick, reason)

    def _settled(self, checkpoint: PendingCheckpoint) -> int:
        """The checkpoint isn't pending any more. Returns: its row, which may have gone: -1."""
        row = checkpoint.row
        if row >= 0 and self.pending.pop(row, None) is not None:
            self._pin(row)
        return row

    def _pin(self, row: int) -> None:
        node = self.records.node(row)
        locks = 0 if node is None else node.component_data[_MAMBA].lock_ref
        self.runtime.table.pins[row] = locks + (row in self.pending)
