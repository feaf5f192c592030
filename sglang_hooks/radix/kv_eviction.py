"""Which cached KV goes first: what no state makes reusable, then the leaf that the policy values least.

KV below the deepest state of its path serves nobody: prefill starts at the state and computes it again. Stock
evicts leaves by last access, whatever hangs on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_cache.components.full import FullComponent

from .host_tier import Utility, utilities

if TYPE_CHECKING:
    from collections.abc import Collection

    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

    from .component import MarconiMambaComponent

_MAMBA = ComponentType.MAMBA


class MarconiFullComponent(FullComponent):
    """Stock's KV component with our order of leaves, where stock's would be plain LRU.

    With a host tier or session references stock's walk sorts the leaves by our key, referenced ones last; another
    `--radix-eviction-policy` (priorities, say) keeps its own order.
    """

    @property
    def _mamba(self) -> MarconiMambaComponent:
        return self.tree_core.components_by_type[_MAMBA]

    @property
    def _ours(self) -> bool:
        core = self.tree_core
        return not (core.enable_hicache or core.enable_session_radix_cache or self._mamba.keeps_stock_order)

    def _evict_device_start(self, request_cnt: int) -> None:
        if not self._ours:
            self._rank(self.tree_core.evictable_device_leaves)
            super()._evict_device_start(request_cnt)
            return
        self._evict_device_request_cnt = request_cnt
        self._evict_device_heap: list[Any] = []
        self._evict_device_last_node = None

    def _evict_device_next_node(self, tracker: dict[Any, int], *args: Any, **kwargs: Any) -> Any:
        if not self._ours:
            return super()._evict_device_next_node(tracker, *args, **kwargs)
        if tracker[self.component_type] >= self._evict_device_request_cnt:
            return None
        leaf = self._mamba.next_leaf()
        return None if leaf is None else leaf.id

    def drive_host_eviction(self, *args: Any, **kwargs: Any) -> None:
        """As stock, the least valuable leaf first."""
        self._rank(self.tree_core.evictable_host_leaves)
        super().drive_host_eviction(*args, **kwargs)

    def _rank(self, leaves: Collection[UnifiedTreeNode]) -> None:
        """Set the key by which stock's walk over `leaves`, and over parents that become leaves, sorts them."""
        if self._mamba.keeps_stock_order:
            return
        runtime = self._mamba.runtime
        ranked = utilities(runtime, leaves)

        def key(node: UnifiedTreeNode) -> tuple[int, Utility]:
            utility = ranked.get(node) or utilities(runtime, [node])[node]
            return self.session_ref(node), utility

        self.session_ref_eviction_strategy = key
