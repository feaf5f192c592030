"""How saved states and their KV enter SGLang's tree, and what becomes of those that never do.

A finished chunk's checkpoints are inserted one by one (`MarconiRadixCache.publish`); a finished request's running slot
is its last state. Whatever the tree doesn't take is given back here.
Source of the replaced behaviour: SGLang 0.5.23, mem_cache/unified_cache/components/mamba.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from sglang.srt.mem_cache.base_prefix_cache import InsertParams, InsertResult

from marconi_ext.config import MarconiConfig
from marconi_ext.policies.request_plan import Plan, Serving
from marconi_ext.policies.table.checkpoints import Kind
from marconi_ext.policies.table.tree_rows import row_of

from ..ledger import CheckpointLedger, PendingCheckpoint
from ..operator.explain import HELD, SAVED, Explainer
from ..policy import kind_name
from .state_eviction import StateEviction
from .tree_core import depth_of

if TYPE_CHECKING:
    import torch
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

    from ..recurrence.speculation import AcceptedRuns
    from .answer_states import AnswerStates


class StatePublishing(StateEviction):
    """The inserting part of the Mamba component: `checkpoint_into_tree` calls prepare, inserts, then calls cleanup."""

    config: MarconiConfig
    ledger: CheckpointLedger
    serving: Serving
    explainer: Explainer
    publishing: PendingCheckpoint | None = None  # the checkpoint that checkpoint_into_tree inserts just now
    saving_for: Req | None = None  # whose states are inserted just now
    tracks_decode = False  # SGLang keeps a state at page multiples while a request is decoded
    key_begins_at = 0  # tokens of the path that the inserted key leaves out: see `MarconiRadixCache.publish`
    runs: AcceptedRuns | None = None  # with speculative decoding
    plans: dict[Req, Plan]
    answers: AnswerStates

    def prepare_for_caching_req(
        self, req: Req, insert_params: InsertParams, token_ids_len: int, is_finished: bool
    ) -> int | None:
        """Name the state that goes with the key; 0 means that there is nothing to insert.

        A finished request's KV goes in even where no state can go with it: it shows where later requests part. So does
        that of a chunk which is sent on.
        """
        if self.publishing is not None:
            insert_params.mamba_value = self.publishing.slot
            return self.publishing.position_tokens
        if is_probe(req):
            return 0
        if not is_finished:
            return token_ids_len if self.cache.sends_kv else 0
        last = req.full_untruncated_fill_ids[token_ids_len - 1]
        wanted = self.serving.saves_last_token(self.plans.get(req), token_ids_len, last)
        aligned = (
            self._running_state_is_exact(req, token_ids_len) and token_ids_len % self.cache.page_size == 0
        )
        if wanted and aligned:
            insert_params.mamba_value = req.kv.mamba_pool_idx.unsqueeze(-1).clone()
            return token_ids_len
        if self.tracks_decode:
            return (
                super().prepare_for_caching_req(req, insert_params, token_ids_len, is_finished)
                if wanted
                else 0
            )
        if wanted and self.cache.page_size == 1:
            self.ledger.counters["last_token_misaligned"] += 1
        return token_ids_len

    def _running_state_is_exact(self, req: Req, token_ids_len: int) -> bool:
        """Whether the running slot stands for the key. Without speculation it has consumed kv_committed_len tokens:
        under overlap one step more than the finish saw."""
        if self.runs is not None:
            return self.runs.is_exact(req, token_ids_len)
        return token_ids_len == req.kv.kv_committed_len

    def commit_insert_component_data(
        self,
        node: UnifiedTreeNode,
        is_new_leaf: bool,
        params: InsertParams,
        result: InsertResult,
        cache_actions: list[Any],
    ) -> None:
        """As stock, where there is a state; keeps the policy's table in step."""
        if params.mamba_value is None:
            result.mamba_exist = True  # none was taken
        else:
            super().commit_insert_component_data(node, is_new_leaf, params, result, cache_actions)
        self.records.tend(node)
        self.records.tend(node.parent)
        if node.component_data[self.component_type].value is None:
            if not node.children:
                self.dead_leaves.add(node)
            return
        self.held.arrived(
            node,
            self.key_begins_at + len(params.key),
            Kind.LAST_TOKEN if self.publishing is None else self.publishing.kind,
            is_new=not result.mamba_exist,
            claim=self.publishing,
        )
        if self.saving_for is not None:
            self.runtime.table.tenant[row_of(node)] = self.tenant_of(self.saving_for)
        if self.events is not None:
            self.events.sync(node)

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
            kind = kind_name(self.publishing.kind)
            if not inserted:
                self._free(self.publishing.slot)
            self.ledger.counters[f"published_{kind}" if inserted else "duplicate"] += 1
            outcome = SAVED if inserted else HELD
            self.explainer.outcome(req, self.publishing.position_tokens, kind, outcome)
            return
        if not is_finished:
            return
        for pending in self.ledger.take(req):
            self._free(pending.slot)
            self.held.abandon(pending, "ended")
            self.ledger.counters["released_unpublished"] += 1
            self.explainer.outcome(
                req, pending.position_tokens, kind_name(pending.kind), "dropped: ended early"
            )
        self._end_plan(req, insert_result)
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
        self.explainer.outcome(req, req.kv.kv_committed_len, "last-token", SAVED if inserted else HELD)

    def _free(self, slot: torch.Tensor) -> None:
        self.cache.req_to_token_pool.mamba_allocator.free(slot)

    def _forget_running_slot(self, req: Req) -> None:
        """The tree owns the running slot now: free the request's tracking slots and clear its fields."""
        req.kv.mamba_pool_idx = self.tree_core._empty_device_indices  # so that no slot is freed for it
        self.cache.req_to_token_pool.free_mamba_cache(req)

    def _end_plan(self, req: Req, insert_result: InsertResult | None) -> None:
        """Find a node for the records of what wasn't saved, where the request's KV is in the tree; else forget."""
        plan = self.plans.pop(req, None)
        self.answers.ended(req)
        if plan is None:
            return
        last = None
        if insert_result is not None and not self.tree_core.enable_hicache:
            last = self.tree_core.node_by_id(insert_result.last_device_node)
        for row, depth in sorted(plan.homeless.items(), key=lambda item: item[1]):
            node = None if last is None else self._boundary(last, depth)
            if node is None:
                self.serving.drop(plan, row)
            else:
                self.serving.settle(plan, row, node)
                self.held.locks_changed(node)
        self.serving.end(plan)

    def _boundary(self, last: UnifiedTreeNode, depth_tokens: int) -> UnifiedTreeNode | None:
        """The node at `depth_tokens` on the path to `last`, split off if need be; None: the path is shorter."""
        end = depth_of(last)
        if not 0 < depth_tokens <= end:
            return None
        node = last
        while end - len(node.key) >= depth_tokens:
            end -= len(node.key)
            node = node.parent
        if end == depth_tokens:
            return node
        upper, _ = self.tree_core._split_node(node.key, node, depth_tokens - (end - len(node.key)))
        return upper


def is_probe(req: Req) -> bool:
    """SGLang's own health check: a token that nobody sends again, and that says nothing of traffic."""
    return isinstance(req.rid, str) and req.rid.startswith(HEALTH_CHECK_RID_PREFIX)
