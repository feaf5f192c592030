"""The Mamba component of the unified radix cache, with exact checkpoints.

Stock tracks one grid-aligned state an extend in two ping-pong slots a request. Here a request holds its running
slot, plus one slot a wanted checkpoint until that is in the tree; the last state is the running slot itself.
Source of the replaced behaviour: SGLang 0.5.23, mem_cache/unified_cache/components/mamba.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, InsertResult, MatchResult
from sglang.srt.mem_cache.unified_cache.components.mamba import MambaComponent

from marconi_ext.config import CheckpointKind, MarconiConfig

from .ledger import CheckpointLedger, PendingCheckpoint
from .planner import plan_extend
from .victims import HitRates, StateClass, classify

if TYPE_CHECKING:
    import torch
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode


VICTIM_WINDOW = 64  # bounds the time that choosing one takes; the coldest states are all in it


@dataclass
class StateFacts:
    """What eviction knows of a state in the tree; rides on its node."""

    kind: CheckpointKind
    last_use_tick: int


class MarconiMambaComponent(MambaComponent):
    """Exact branch points, checkpoint slots with one owner at a time, the least valuable state evicted first."""

    config: MarconiConfig  # set by the cache factory, before any request
    ledger: CheckpointLedger
    publishing: PendingCheckpoint | None = None  # the checkpoint that checkpoint_into_tree inserts just now
    tick = 0  # extends planned so far
    _exposed_at_tick = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rates = HitRates()

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
        self.note_request(req)
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
        """As stock; notes what kind of state this is, and that it is in use now."""
        super().commit_insert_component_data(node, is_new_leaf, params, result, cache_actions)
        kind = CheckpointKind.LAST_TOKEN if self.publishing is None else self.publishing.kind
        node.marconi_state = StateFacts(kind, self.tick)

    def note_request(self, req: Req) -> None:
        """A tick; and, at a request's first extend, which class of state it starts from."""
        self.tick += 1
        if req.extend_batch_idx != 1 or req.prefix_len == 0 or self.cache.is_root(req.last_node):
            return
        node = self.tree_core.node_by_id(req.last_node)
        facts = getattr(node, "marconi_state", None)
        if facts is not None:
            self.rates.hit(classify(facts.kind, len(node.children)), self.tick)
            facts.last_use_tick = self.tick

    def _evict_device_start(self, request_cnt: int) -> None:
        self._offered_victims: set[int] = set()
        super()._evict_device_start(request_cnt)

    def _evict_device_next_node(self, tracker: dict[Any, int], *args: Any, **kwargs: Any) -> Any:
        """As stock's step, on the least valuable state instead of the least recently used one.

        With session references the list is partitioned and stays in stock's order.
        """
        if tracker[self.component_type] < self._evict_device_request_cnt and not (
            self.tree_core.enable_session_radix_cache
        ):
            self._evict_device_cursor = self._least_valuable()
        return super()._evict_device_next_node(tracker, *args, **kwargs)

    def _least_valuable(self) -> UnifiedTreeNode | None:
        """The state to evict, out of the `VICTIM_WINDOW` least recently used unlocked ones; None: no more."""
        states = self.tree_core.lru_lists[self.component_type]
        candidates, counts = [], [0] * len(StateClass)
        node = states.get_lru_no_lock()
        while node is not None and len(candidates) < VICTIM_WINDOW:
            if node.id not in self._offered_victims:
                facts = getattr(node, "marconi_state", None) or StateFacts(
                    CheckpointKind.LAST_TOKEN, self.tick
                )
                state_class = classify(facts.kind, len(node.children))
                counts[state_class] += 1
                candidates.append((node, facts, state_class))
            node = states.get_prev_no_lock(node)
        if not candidates:
            return None
        if self.tick > self._exposed_at_tick:
            self.rates.exposed(counts, self.tick)
            self._exposed_at_tick = self.tick
        victim = min(
            candidates,
            key=lambda c: self.rates.value(c[2], self._tokens_saved(c[0]), self.tick - c[1].last_use_tick),
        )[0]
        self._offered_victims.add(victim.id)
        return victim

    def _tokens_saved(self, node: UnifiedTreeNode) -> int:
        """Tokens between this state and the nearest one above it."""
        tokens = 0
        while node is not self.tree_core.root_node:
            tokens += len(node.key)
            node = node.parent
            if node.component_data[self.component_type].value is not None:
                break
        return tokens
