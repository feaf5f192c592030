"""The Mamba component of the unified radix cache, with exact checkpoints.

Stock tracks one grid-aligned state an extend in two ping-pong slots a request. Here a request holds its running
slot, plus one slot a wanted checkpoint until that is in the tree; the last state is the running slot itself.
Source of the replaced behaviour: SGLang 0.5.23, mem_cache/unified_cache/components/mamba.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, InsertResult, MatchResult
from sglang.srt.mem_cache.unified_cache.components.mamba import MambaComponent

from marconi_ext.config import CheckpointKind, MarconiConfig

from .ledger import CheckpointLedger, PendingCheckpoint
from .planner import plan_extend

if TYPE_CHECKING:
    import torch
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode


class MarconiMambaComponent(MambaComponent):
    """Exact branch points, checkpoint slots with one owner at a time, superseded states evicted first."""

    config: MarconiConfig  # set by the cache factory, before any request
    ledger: CheckpointLedger
    publishing: PendingCheckpoint | None = None  # the checkpoint that checkpoint_into_tree inserts just now

    # ---- matching ----

    def finalize_match_result_in_tree_core(
        self, result: MatchResult, params: Any, value_chunks: list[torch.Tensor], best_value_len: int
    ) -> MatchResult:
        """As stock, but the branch point is exact: stock floors it to the chunk grid. Keys are page multiples."""
        result = super().finalize_match_result_in_tree_core(result, params, value_chunks, best_value_len)
        state_hit_tokens = result.device_prefix_len + result.host_hit_length
        branch_tokens = result.full_kv_hit_length
        return result._replace(
            mamba_branching_seqlen=branch_tokens if branch_tokens > state_hit_tokens else None
        )

    # ---- planning: called once an extend, after the request got its row and its running slot ----

    def plan_request(self, req: Req) -> None:
        """Take a slot for each checkpoint that this extend should save; none left is no error."""
        for kind, position in plan_extend(
            self.config,
            prefix_tokens=req.prefix_len,
            extend_end_tokens=req.extend_end,
            prompt_tokens=len(req.full_untruncated_fill_ids),
            branch_tokens=req.mamba_branching_seqlen,
            page_tokens=self.cache.page_size,
        ):
            slot = self._take_spare_slot()
            if slot is None:
                self.ledger.counters["skipped_no_slot"] += 1
                continue
            self.ledger.add(req, PendingCheckpoint(kind, position, slot))
            self.ledger.counters[f"planned_{kind}"] += 1

    def _take_spare_slot(self) -> torch.Tensor | None:
        """A free slot, or one evicted for us; None where requests to come could then lack theirs.

        Each further request needs a running slot and pins the state that it starts from.
        """
        pool = self.cache.req_to_token_pool
        allocator = pool.mamba_allocator
        reclaimable = allocator.schedulable_available_size() + self.cache.mamba_evictable_size()
        if reclaimable <= 2 * pool.available_size():
            return None
        slot = allocator.alloc(1)
        if slot is None:
            self.cache.evict_for_alloc(EvictParams(num_tokens=0, mamba_num=1))
            slot = allocator.alloc(1)
        return slot

    # ---- publishing: checkpoint_into_tree calls prepare, inserts, then calls cleanup ----

    def prepare_for_caching_req(
        self, req: Req, insert_params: InsertParams, token_ids_len: int, is_finished: bool
    ) -> int | None:
        """Name the state that goes with the key; 0 means that there is none to insert."""
        if self.publishing is not None:
            insert_params.mamba_value = self.publishing.slot
            return self.publishing.position_tokens
        if not is_finished or not self.config.saves(CheckpointKind.LAST_TOKEN):
            return 0
        # The running slot has consumed kv_committed_len tokens: under overlap one step more than the finish
        # saw. It can stand for the key only where the two lengths agree.
        if token_ids_len == req.kv.kv_committed_len and token_ids_len % self.cache.page_size == 0:
            insert_params.mamba_value = req.kv.mamba_pool_idx.unsqueeze(-1).clone()
            return token_ids_len
        if self.cache.page_size > 1:  # decode states at page multiples, tracked by stock
            return super().prepare_for_caching_req(req, insert_params, token_ids_len, is_finished)
        self.ledger.counters["last_token_misaligned"] += 1
        return 0

    def cleanup_after_caching_req(
        self,
        req: Req,
        is_finished: bool,
        insert_result: InsertResult | None = None,
        insert_params: InsertParams | None = None,
    ) -> None:
        """Give back every slot that the insert didn't take; a finished or released request keeps none."""
        inserted = insert_result is not None and not insert_result.mamba_exist
        if self.publishing is not None:
            self._settle(self.publishing.kind, self.publishing.slot, inserted)
            return
        if not is_finished:
            return
        for pending in self.ledger.take(req):
            self._free(pending.slot)
            self.ledger.counters["released_unpublished"] += 1
        donates_running_slot = (
            insert_params is not None
            and insert_params.mamba_value is not None
            and insert_params.mamba_keep_idx is None
        )
        if not donates_running_slot:
            super().cleanup_after_caching_req(req, True, insert_result, insert_params)
            return
        if inserted:
            self._forget_running_slot(req)
        else:
            self.cache.req_to_token_pool.free_mamba_cache(req)
        self.ledger.counters["published_last-token" if inserted else "duplicate"] += 1

    def _settle(self, kind: CheckpointKind, slot: torch.Tensor, inserted: bool) -> None:
        if inserted:
            self.ledger.counters[f"published_{kind}"] += 1
        else:
            self._free(slot)
            self.ledger.counters["duplicate"] += 1

    def _free(self, slot: torch.Tensor) -> None:
        self.cache.req_to_token_pool.mamba_allocator.free(slot)

    def _forget_running_slot(self, req: Req) -> None:
        """The tree owns the running slot now: free the request's tracking slots and clear its fields."""
        req.kv.mamba_pool_idx = req.kv.mamba_pool_idx.new_empty(
            0
        )  # so that free_mamba_cache frees no slot for it
        self.cache.req_to_token_pool.free_mamba_cache(req)

    # ---- eviction ----

    def commit_insert_component_data(
        self,
        node: UnifiedTreeNode,
        is_new_leaf: bool,
        params: InsertParams,
        result: InsertResult,
        cache_actions: list[Any],
    ) -> None:
        """As stock; then the states that this one supersedes go to the cold end of the LRU list.

        Superseded: further up, with no fork between: a prompt that goes on from here reuses the deeper state.
        A hit makes such a state most recently used again. With session references the list is partitioned and
        stays as stock orders it.
        """
        super().commit_insert_component_data(node, is_new_leaf, params, result, cache_actions)
        if self.tree_core.enable_session_radix_cache:
            return
        states = self.tree_core.lru_lists[self.component_type]
        ancestor = node.parent
        while ancestor is not self.tree_core.root_node and len(ancestor.children) == 1:
            if states.in_list(ancestor):
                states.remove_node(ancestor)
                states.insert_after(states.tail.lru_prev[states._pt], ancestor)
            ancestor = ancestor.parent
