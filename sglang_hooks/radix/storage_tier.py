"""With a storage tier behind the host: which nodes are written there, and when.

SGLang writes every node as soon as its copy on the host is complete, tails that nobody comes back to as well. A state
counts only together with all KV above it. So a leaf whose state isn't worth writing stays out whole, KV and state; if
something below it is written later, its KV goes first, so that no chain in storage has a gap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

from marconi_ext.policies.storage_writes import StorageWrites
from marconi_ext.policies.table.tree_rows import row_of

from .host_tier import has_state

if TYPE_CHECKING:
    from collections import Counter

    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

    from marconi_ext.policies.runtime import PolicyRuntime

_MAMBA = ComponentType.MAMBA


class StorageTier:
    """One per cache; used by its scheduler's thread alone. counters: of what was written and what was held back"""

    def __init__(self, runtime: PolicyRuntime, counters: Counter[str], share: float) -> None:
        self._runtime, self._counters = runtime, counters
        self._writes = StorageWrites(share)
        self._held_back: set[UnifiedTreeNode] = set()  # KV that isn't in storage, on purpose
        self.without_state: UnifiedTreeNode | None = None  # its KV is written just now, and its state isn't

    def write(self, node: UnifiedTreeNode, write: Callable[[UnifiedTreeNode], None]) -> None:
        """Write the node, or don't. write: as stock does, KV and state; the KV alone of `without_state`."""
        counters = self._counters
        worth = not has_state(node) or self._worth(node)
        if not worth and not node.children:
            self._held_back.add(node)
            counters["storage_held_back"] += 1
            return
        above = node.parent
        chain = []
        while above is not None and above in self._held_back:
            chain.append(above)
            above = above.parent
        for earlier in reversed(chain):
            self._held_back.discard(earlier)
            self._write_kv(earlier, write)
        if worth:
            counters["storage_written_states"] += has_state(node)
            write(node)
        else:
            self._write_kv(node, write)

    def split(self, upper: UnifiedTreeNode, lower: UnifiedTreeNode) -> None:
        """`upper` has a part of the KV that was `lower`'s."""
        if lower in self._held_back:
            self._held_back.add(upper)

    def forget(self, node: UnifiedTreeNode) -> None:
        """The node leaves the tree."""
        self._held_back.discard(node)

    def clear(self) -> None:
        """The tree was reset."""
        self._held_back.clear()

    def _write_kv(self, node: UnifiedTreeNode, write: Callable[[UnifiedTreeNode], None]) -> None:
        self.without_state = node
        try:
            write(node)
        finally:
            self.without_state = None

    def _worth(self, node: UnifiedTreeNode) -> bool:
        """Whether the node's state is worth writing. One without a row is: nothing is known of it."""
        row, runtime = row_of(node), self._runtime
        if row < 0 or self._writes.share == 1:
            return True
        scores = runtime.eviction.scores(runtime.table, np.array([row]), runtime.tick)
        return self._writes.worth(float(scores[0]))
