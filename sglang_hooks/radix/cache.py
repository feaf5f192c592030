"""SGLang's unified radix cache, publishing several exact checkpoints of one request."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.mem_cache.base_prefix_cache import InsertParams, InsertResult
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.utils.rank_consensus_checker import rank_consensus

from .component import MarconiMambaComponent
from .kv_eviction import MarconiFullComponent
from .pools import PooledRadixCache
from .table_census import TableCensus
from .tree_core import KV_ALONE, depth_of, register

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import NodeId, UnifiedTreeNode


class MarconiRadixCache(PooledRadixCache):
    """Adds to stock: one insert a checkpoint, shallow first, and a census of the state slots."""

    sends_kv = False  # a prefill server, which sends a chunk's KV on while the next one is computed

    @property
    def mamba(self) -> MarconiMambaComponent:
        """The component that owns the recurrent states."""
        return self.components[ComponentType.MAMBA]

    def __init__(self, params: CacheInitParams) -> None:
        super().__init__(params)
        self.census = TableCensus(self.mamba)

    def reset(self) -> None:
        """As stock; SGLang clears the pools in the same step, so pending slots are forgotten, not freed."""
        super().reset()
        self.mamba.forget_all()

    def touch_prefix(self, key: RadixKey) -> None:
        """As stock, where its stamps are read; else nothing: its walk would split the edge that a waiting prompt ends
        in, and the first of the two parts would outlive the other as a leaf of its own."""
        if not self.tree_core.plain:
            super().touch_prefix(key)

    def checkpoint_into_tree(self, req: Req, *, up_to: int, **kwargs: Any) -> None:
        """Insert the request's written checkpoints up to `up_to` tokens, then, if it finished, its last state."""
        mamba = self.mamba
        mamba.saving_for = req
        try:
            for checkpoint in mamba.ledger.take_written_up_to(req, up_to):
                mamba.publishing = checkpoint
                self.publish(req, checkpoint.position_tokens, **kwargs)
                mamba.publishing = None
            if req.finished() or self._is_sent_on(req, up_to):
                self.publish(req, up_to, **kwargs)
        finally:
            mamba.publishing = mamba.saving_for = None
        self._release_state(req)
        mamba.keep_within_ceiling(req)

    def _is_sent_on(self, req: Req, up_to: int) -> bool:
        """Whether the KV of a chunk is about to be sent that no state took into the tree. It goes in now: later
        another request may have brought the same, and this one's would be freed while it is still being read."""
        return self.sends_kv and req.kv.cache_protected_len < up_to < len(req.origin_input_ids)

    def _release_state(self, req: Req) -> None:
        """A request has copied the state that it starts from once its first batch was launched: from then on it locks
        its KV alone. A session's lock outlives the request, and stays as stock has it."""
        lock = req.lock
        if req.finished() or lock is None or lock.swa_released or req.session is not None:
            return
        if ComponentType.MAMBA not in lock.receipt.skipped_lock_components:
            others = tuple(kind for kind in self.tree_components if kind != ComponentType.MAMBA)
            self.dec_lock_ref(lock.node, replace(lock.receipt, skipped_lock_components=others))
            lock.receipt.skipped_lock_components += KV_ALONE

    def publish(self, req: Req, up_to: int, **kwargs: Any) -> None:
        """Insert the request's first `up_to` tokens: free the KV that the tree already has, point the request's
        row at the tree's, and move its lock down. As stock's `checkpoint_into_tree`, from the locked node on."""
        held, start = req.kv.cache_protected_len, self._locked_node(req)
        if start is None or up_to < held:
            super().checkpoint_into_tree(req, up_to=up_to, **kwargs)
            return
        params = InsertParams(
            prev_prefix_len=held,
            inserted_len=req.kv.cache_inserted_len,
            priority=req.priority or 0,
            session_id=req.session_id,
        )
        finished = req.finished()
        wanted = self.mamba.prepare_for_caching_req(req, params, up_to, finished)
        end = up_to if wanted is None else min(up_to, wanted)
        end -= end % self.page_size
        if end <= 0:
            self.mamba.cleanup_after_caching_req(req, finished, insert_params=params)
            return
        assert end >= held, f"a state at {end} tokens, above the {held} that are published"
        row = self.req_to_token_pool.req_to_token[req.kv.req_pool_idx]
        tokens = req.full_untruncated_fill_ids[held:end]
        params.key = RadixKey(tokens, req.extra_key, cache_salt=req.cache_salt)
        params.value = row[held:end].to(dtype=torch.int64, copy=True)
        result = self._insert_below(start, held, params)
        core, last = self.tree_core, self.tree_core.node_by_id(result.last_device_node)
        if result.prefix_len > held:
            row_part = (req.kv.req_pool_idx, slice(held, end))
            self.req_to_token_pool.write(row_part, core.collect_full_device_indices(last.id, start.id))
        req.kv.cache_inserted_len = max(req.kv.cache_inserted_len, end)
        req.kv.cache_protected_len, req.last_node = end, last.id
        if not finished:  # the end of a finished request lets go of its lock anyway, with no eviction before
            req.lock = core.move_lock(req.lock, last)
        self.mamba.cleanup_after_caching_req(req, finished, result, params)

    def _insert_below(self, start: UnifiedTreeNode, held: int, params: InsertParams) -> InsertResult:
        """Insert what follows the `held` tokens that end at `start`."""
        core, self.mamba.key_begins_at = self.tree_core, held
        try:
            if not len(params.key) or params.key.child_key(self.page_size) in start.children:
                core.insert_from = (start, held)
                return self.insert(params)
            leaf = core.add_leaf(start, params)
            result = InsertResult(prefix_len=held, last_device_node=leaf.id)
            actions: list[Any] = []
            self.mamba.commit_insert_component_data(leaf, True, params, result, actions)
            if actions:
                self._apply_cache_actions(actions)
            return result
        finally:
            core.insert_from, self.mamba.key_begins_at = None, 0

    def _locked_node(self, req: Req) -> UnifiedTreeNode | None:
        """The node down to which the request locks its path, if an insert may begin there; else None."""
        core, lock = self.tree_core, req.lock
        if self.disable or not core.plain or lock is None:
            return None
        if req.session is not None or req.kv_rotation_base is not None:
            return None
        node = core.node_by_id(lock.node)
        return node if depth_of(node) == req.kv.cache_protected_len else None

    @rank_consensus
    def write_backup_storage(self, node_id: NodeId) -> None:
        """As stock; what isn't worth it stays out of storage."""
        if self.enable_storage and self.cache_controller is not None:
            node = self.tree_core.node_by_id(node_id)
            write = super().write_backup_storage
            self.mamba.storage.write(node, lambda found: write(found.id))

    def slot_census(self) -> dict[str, int]:
        """State slots by owner. While no request runs, `unaccounted` is 0: free + cached + held = pool."""
        allocator = self.req_to_token_pool.mamba_allocator
        free = allocator.available_size()
        cached = self.mamba_evictable_size() + self.mamba_protected_size()
        held = self.mamba.ledger.held_slots
        return {
            "pool": allocator.size,
            "free": free,
            "cached": cached,
            "held": held,
            "unaccounted": allocator.size - free - cached - held,
        }

    def kv_census(self) -> dict[str, int]:
        """KV tokens: the pool's, free ones, and what the tree holds. With `shared_bytes`, the bytes of the buffer
        that KV and states share, a token is free where neither has it."""
        allocator = self.token_to_kv_pool_allocator
        census = {
            "pool": allocator.size,
            "free": allocator.available_size(),
            "cached": self.full_evictable_size() + self.full_protected_size(),
        }
        return census if self.shared is None else census | {"shared_bytes": self.shared.total_bytes}

    def operator_facts(self) -> dict[str, Any]:
        """What operators have pinned, and states by tenant with a quota."""
        return {
            "pins": self.mamba.pins.report(),
            "tenants": self.mamba.runtime.reserves.states_by_tenant(),
        }

    def policy_facts(self) -> dict[str, Any]:
        """What decides here, so that a simulator can be set up like it."""
        runtime, config = self.mamba.runtime, self.mamba.config
        return {
            "name": config.policy,
            "kinds": sorted(int(kind) for kind in self.mamba.serving.kinds),
            "currency": asdict(runtime.currency),
            "messages": asdict(self.mamba.serving.headers),
            "requests": runtime.tick,
            "parameters": {name: float(value) for name, value in runtime.eviction.parameters().items()},
            "counts": dict(sorted(runtime.counts.items())),
            "bootstrap": [config.bootstrap_window_size, config.bootstrap_multiplier, config.tuning_interval],
            "tunings": [] if self.mamba.tuner is None else self.mamba.tuner.applied[-1_000:],
        }


def our_components(params: CacheInitParams) -> None:
    """Have SGLang build our components of the cache, and our tree core, in place of its own."""
    params.tree_core_backend = register()
    params.component_registry_override = {
        **(params.component_registry_override or {}),
        ComponentType.FULL: MarconiFullComponent,
        ComponentType.MAMBA: MarconiMambaComponent,
    }
