"""Which recurrent states go, and what that means to the policy's table.

In a plain tree a state or a leaf leaves in one step. With several tiers, session references or another order of
eviction SGLang's own walk carries the choice out. States that an open session refers to go after all others, as in
stock; among either the policy chooses.
Source of the replaced behaviour: SGLang 0.5.23, mem_cache/unified_cache/components/mamba.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, EvictResult
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_cache.components.base import EvictLayer
from sglang.srt.mem_cache.unified_cache.components.mamba import MambaComponent

from marconi_ext.policies.held_states import HeldStates
from marconi_ext.policies.making_room import DeadLeaves, make_room_for_kv, make_room_for_state
from marconi_ext.policies.runtime import PolicyRuntime
from marconi_ext.policies.table.tree_rows import TreeRecords, row_of

from ..node_states import holds_state
from ..stats import CacheStats
from .host_tier import bring_forward

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

    from .pools import PooledRadixCache
    from .storage_tier import StorageTier
    from .watcher import StateWatcher

_MAMBA = ComponentType.MAMBA


class StateEviction(MambaComponent):
    """The evicting half of the Mamba component: the least valuable state first."""

    cache: PooledRadixCache
    stats: CacheStats
    runtime: PolicyRuntime
    records: TreeRecords
    held: HeldStates
    storage: StorageTier
    events: StateWatcher | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dead_leaves = DeadLeaves(lambda node: node.id, self._is_free_dead_leaf)
        self._chosen = -1  # row that stock's walk is to evict
        self._over_quota = False  # its tenant holds too many, whether the pool is full or not
        self._passed_over: set[int] = set()  # rows that this walk of stock's was offered already
        self.referenced: set[UnifiedTreeNode] = set()  # by open sessions

    # ---- a plain tree ----

    def evict(self, tokens: int, states: int, kv: list[torch.Tensor], slots: list[torch.Tensor]) -> None:
        """Take leaves out of the tree until `tokens` of KV are free, then states until `states` slots are.

        kv, slots: get what the caller is to free, whatever happens here
        """
        leaving = _Leaving(self, kv, slots)
        make_room_for_kv(leaving, lambda: leaving.tokens < tokens, shared=False)
        make_room_for_state(leaving, lambda: len(slots) < states, shared=False)

    def evict_bytes(self, wanted: int, kv: list[torch.Tensor], slots: list[torch.Tensor]) -> bool:
        """Free `wanted` bytes of a buffer that KV and states share. kv, slots: as in `evict`

        Returns: False where nothing more may go.
        """
        shared = self.cache.shared
        assert shared is not None
        leaving = _Leaving(self, kv, slots)

        def is_short() -> bool:
            return leaving.tokens * shared.kv_bytes + leaving.states * shared.state_bytes < wanted

        return make_room_for_kv(leaving, is_short, shared=True)

    def take_slot_of_lesser(self, newcomer: int) -> torch.Tensor | None:
        """The slot of a state that is worth less than the one offered at row `newcomer`; None: there is none."""
        wanted = _SlotWanted(self)
        shared = self.cache.shared is not None
        make_room_for_state(wanted, lambda: wanted.looks, shared=shared, newcomer=newcomer)
        return wanted.slot

    def tenant_of(self, req: Req) -> int:
        """The number of a request's tenant. SGLang has put the id of its LoRA adapter at the end of its key."""
        key = req.extra_key
        if key and req.lora_id:
            key = key.removesuffix(req.lora_id)
        return self.runtime.reserves.tenant(key, req.cache_salt)

    def keep_within_ceiling(self, req: Req) -> None:
        """A tenant that saves states beyond its ceiling loses its own least valuable ones, those on their way aside."""
        reserves = self.runtime.reserves
        if not reserves.active:
            return
        tenant = self.tenant_of(req)
        for _ in range(reserves.excess(tenant)):
            row = self.runtime.victim(reserves.of_tenant(self.runtime.candidates(), tenant))
            if row is None:
                return
            self._over_quota = True
            slot = self.evict_row(row)
            self._over_quota = False
            if slot is not None:
                self.cache.req_to_token_pool.mamba_allocator.free(slot)

    def evict_row(self, row: int) -> torch.Tensor | None:
        """The state at `row` goes. Returns: its slot; None: SGLang's walk has freed it, as far as it could."""
        if self.cache.simple:
            return self.take_victim(row)
        self._chosen = row
        self.cache.evict_for_alloc(EvictParams(num_tokens=0, mamba_num=1))
        self._chosen = -1
        return None

    def _is_free_dead_leaf(self, node: UnifiedTreeNode) -> bool | None:
        if node.children or holds_state(node) or not self.tree_core.holds(node):
            return None
        return node in self.tree_core.evictable_device_leaves

    def take_leaf(self, leaf: UnifiedTreeNode, kv: list[torch.Tensor], slots: list[torch.Tensor]) -> int:
        """The leaf leaves the tree, with its state if it has one. Returns: its tokens."""
        if leaf.component_data[_MAMBA].value is not None:
            slots.append(self._take_state(leaf, "kv-evicted"))
        self._forget_leaf(leaf)
        kv.append(self.tree_core.take_leaf(leaf))
        return len(leaf.key.token_ids)

    def take_victim(self, row: int) -> torch.Tensor:
        """The state at `row` leaves the tree. Returns: its slot."""
        node = self.records.node(row)
        slot = self._take_state(node, self._why_chosen())
        if not node.children:
            self.dead_leaves.add(node)
        return slot

    def _why_chosen(self) -> str:
        return "quota" if self._over_quota else "pool-full"

    def _take_state(self, node: UnifiedTreeNode, reason: str) -> torch.Tensor:
        slot = self.tree_core.take_state(node)
        self.held.left(node, reason)
        if self.events is not None:
            self.events.sync(node)
        return slot

    # ---- leaves ----

    def next_leaf(self) -> UnifiedTreeNode | None:
        """The leaf whose KV should go first: the oldest without a state, else the least valuable; None: none may."""
        return self.dead_leaves.pop() or self.least_valuable_leaf()

    def least_valuable_leaf(self) -> UnifiedTreeNode | None:
        """The leaf with a state whose KV should go first; None: none may go.

        SGLang admits requests against all KV that it counts as evictable, so none of that may be held back: leaves
        that the table has no claim on come last.
        """
        evictable = self.tree_core.evictable_device_leaves
        row, node = self.runtime.leaf_victim(), self.records.node
        if row is not None and node(row) not in evictable:  # a running request's, whose KV is locked
            rows = self.runtime.candidates(leaves=True)
            rows = rows[[node(one) in evictable for one in rows.tolist()]]
            row = self.runtime.leaf_victim(rows)
        if row is not None:
            return node(row)
        return min(evictable, key=lambda node: node.id, default=None)

    def discard_deleted_session_leaf(self, node: UnifiedTreeNode) -> None:
        """As stock; called just before any node leaves the tree."""
        super().discard_deleted_session_leaf(node)
        self._forget_leaf(node)

    def _forget_leaf(self, node: UnifiedTreeNode) -> None:
        """The node is about to leave the tree, and its record with it."""
        parent = node.parent
        self.held.node_leaves(node)
        self.storage.forget(node)
        left = len(parent.children) - 1
        self.records.tend(parent, children=left)
        if left == 0 and parent.component_data[_MAMBA].value is None:
            self.dead_leaves.add(parent)

    # ---- SGLang's walks ----

    def evict_component(
        self, node: UnifiedTreeNode, *args: Any, target: EvictLayer = EvictLayer.DEVICE, **kwargs: Any
    ) -> tuple[int, int]:
        """As stock; the record stays as a ghost while its KV does."""
        held = EvictLayer.DEVICE in target and holds_state(node)
        freed = super().evict_component(node, *args, target=target, **kwargs)
        if held:
            reason = self._why_chosen() if self.is_evict_device_ongoing else "kv-evicted"
            on_host = node.component_data[_MAMBA].host_value is not None
            self.held.left(node, "host" if on_host else reason)
        if self.events is not None:
            self.events.sync(node)
        return freed

    def _emit_excess_path_states_eviction(self, tail: UnifiedTreeNode, cache_actions: list[Any]) -> None:
        """Nothing: `--mamba-max-states-per-path` would remove by depth what the policy keeps by worth."""

    def _evict_device_start(self, request_cnt: int) -> None:
        self._passed_over.clear()
        super()._evict_device_start(request_cnt)

    def _evict_device_next_node(
        self,
        tracker: dict[Any, int],
        device_frees: dict[Any, list[torch.Tensor]],
        host_frees: dict[Any, list[torch.Tensor]],
        cache_actions: list[Any],
    ) -> Any:
        """One step: the state that the policy values least goes; a leaf's KV stays until KV is wanted.

        With a host tier the step is stock's, which demotes leaves with their KV, on the policy's choice.
        """
        frees = {"device_frees": device_frees, "host_frees": host_frees, "cache_actions": cache_actions}
        done = tracker[_MAMBA] >= self._evict_device_request_cnt
        node = None if done else self._victim()
        if node is not None and not self.tree_core.enable_hicache:
            self._drop_state(node, tracker, **frees)
            return None
        if node is not None:
            self._evict_device_cursor = node
        return super()._evict_device_next_node(tracker, **frees)

    def _drop_state(self, node: UnifiedTreeNode, tracker: dict[Any, int], **frees: Any) -> None:
        """The node's state leaves the device; its KV stays."""
        core = self.tree_core
        core._evict_component_and_detach_lru(node, self, target=EvictLayer.DEVICE, tracker=tracker, **frees)
        core._update_evictable_leaf_sets(node)
        if not node.children:
            self.dead_leaves.add(node)

    def drive_host_eviction(
        self, num_tokens: int, tracker: dict[Any, int], *args: Any, **kwargs: Any
    ) -> None:
        """As stock, one state at a time, the least valuable first."""
        states = self.tree_core.host_lru_lists[_MAMBA]
        while (held := tracker[_MAMBA]) < num_tokens and bring_forward(self.runtime, states):
            super().drive_host_eviction(held + 1, tracker, *args, **kwargs)
            if tracker[_MAMBA] == held:
                return

    def _victim(self) -> UnifiedTreeNode | None:
        chosen, self._chosen = self._chosen, -1
        row: int | None = chosen
        if chosen < 0:
            rows = self._candidates()
            if self._passed_over:
                rows = rows[[row not in self._passed_over for row in rows.tolist()]]
            row = self.runtime.victim(rows)
        if row is None:
            return None
        self._passed_over.add(row)
        return self.records.node(row)

    # ---- session references ----

    def least_valuable(self, newcomer: int = -1) -> int | None:
        """The row to evict out of `_candidates`, or `newcomer`, or None, as `PolicyRuntime.victim` has it."""
        if self.referenced:
            return self.runtime.victim(self._candidates(), newcomer)
        if self.cache.shared is not None:
            return self.runtime.victim_in_bytes(newcomer)
        return self.runtime.victim_of_all(newcomer)

    def _candidates(self) -> np.ndarray:
        """Rows of the states that may go: those that no open session refers to, if there are any."""
        rows = self.runtime.candidates()
        if not self.referenced:
            return rows
        kept = np.fromiter((row_of(node) for node in self.referenced), np.int64, len(self.referenced))
        free = rows[~np.isin(rows, kept)]
        return free if len(free) else rows

    def reset_session_state(self) -> None:
        """As stock: no session is open any more."""
        super().reset_session_state()
        self.referenced.clear()

    def _refresh_session_partition(self, node: UnifiedTreeNode) -> None:
        """As stock; called when the first session begins to refer to a node, and when the last one ends."""
        super()._refresh_session_partition(node)
        if node.component_data[_MAMBA].session_ref:
            self.referenced.add(node)
        else:
            self.referenced.discard(node)


class _Leaving:
    """What leaves the tree in one round of eviction, for `make_room_for_kv` and `make_room_for_state`. tokens: of KV;
    states: those that left without their leaf"""

    def __init__(self, mamba: StateEviction, kv: list[torch.Tensor], slots: list[torch.Tensor]) -> None:
        self._mamba, self._kv, self._slots = mamba, kv, slots
        self.tokens = self.states = 0

    def dead_leaf(self, *, unwanted: bool = False) -> UnifiedTreeNode | None:
        dead = self._mamba.dead_leaves
        return dead.pop(self._mamba.held.is_wanted) if unwanted else dead.pop()

    def coldest_leaf(self) -> UnifiedTreeNode | None:
        return self._mamba.least_valuable_leaf()

    def least_valuable(self, newcomer: int = -1) -> int | None:
        return self._mamba.least_valuable(newcomer)

    def take_leaf(self, leaf: UnifiedTreeNode) -> None:
        self.tokens += self._mamba.take_leaf(leaf, self._kv, self._slots)

    def take_state(self, row: int) -> None:
        self._slots.append(self._mamba.take_victim(row))
        self.states += 1


class _SlotWanted(_Leaving):
    """The same for one slot: what leaves is freed at once. slot: the one that was found; looks: none was so far"""

    def __init__(self, mamba: StateEviction) -> None:
        super().__init__(mamba, [], [])
        self.slot: torch.Tensor | None = None
        self.looks = True

    def take_leaf(self, leaf: UnifiedTreeNode) -> None:
        cache = self._mamba.cache
        assert cache.shared is not None
        with cache.freeing(EvictResult()) as (kv, slots):
            self._mamba.take_leaf(leaf, kv, slots)
        if not cache.shared.missing_bytes(0, 1):
            self._found(None)

    def take_state(self, row: int) -> None:
        self._found(self._mamba.evict_row(row))

    def _found(self, slot: torch.Tensor | None) -> None:
        allocator = self._mamba.cache.req_to_token_pool.mamba_allocator
        self.slot, self.looks = allocator.alloc(1) if slot is None else slot, False
