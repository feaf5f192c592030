"""The Mamba component of the unified radix cache, with exact checkpoints and the policy's eviction.

Stock tracks one grid-aligned state an extend in two ping-pong slots a request. Here a request holds its running
slot, plus one slot a wanted checkpoint until that is in the tree; the last state is the running slot itself.
What is saved and what is evicted is decided by `marconi_ext.policies`: the component tells its runtime what happens to
SGLang's tree, and carries out the answers. Matching and planning are here, what enters the tree in `publishing.py`,
what leaves it in `state_eviction.py`.
Source of the replaced behaviour: SGLang 0.5.23, mem_cache/unified_cache/components/mamba.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertResult, MatchResult
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.components.base import CacheTransferPhase
from sglang.srt.utils import rank_consensus_checker

from marconi_ext.config import MarconiConfig
from marconi_ext.policies.admission import Offer
from marconi_ext.policies.held_states import HeldStates, Placed
from marconi_ext.policies.paper.background import Tuner
from marconi_ext.policies.paper.tuner import Marconi
from marconi_ext.policies.quotas import quotas_in_slots
from marconi_ext.policies.request_plan import Match, Plan, Serving
from marconi_ext.policies.runtime import PolicyRuntime
from marconi_ext.policies.table.checkpoints import Kind
from marconi_ext.policies.table.tree_rows import TreeRecords, row_of

from .. import node_states
from ..ledger import CheckpointLedger, PendingCheckpoint
from ..node_states import holds_state
from ..operator.explain import HELD, REASONS, SAVING, Explainer
from ..operator.pins import Pins
from ..operator.wishes import NO_WISHES
from ..policy import kind_name, saved_kinds
from ..stats import CacheStats
from .agreement import Agreement
from .answer_states import AnswerStates
from .concurrency import slots_set_aside
from .host_tier import has_state
from .publishing import StatePublishing, is_probe
from .storage_tier import StorageTier
from .tree_core import depth_of

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.hicache_storage import PoolTransfer
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode


_OUTCOMES = {
    Placed.HELD: HELD,
    Placed.NO_FREE_ROOM: "refused: worth a free slot alone, and none was free",
    Placed.DISPLACED: "displaced by another state of this request",
    Placed.GRANTED: SAVING,
}


class MarconiMambaComponent(StatePublishing):
    """Exact checkpoints, slots with one owner at a time, the least valuable state evicted first."""

    # None until `adopt` sets it, before any request; the constructor resets the tree earlier
    runtime: PolicyRuntime = None  # type: ignore[assignment]
    storage: StorageTier = None  # type: ignore[assignment]
    keeps_stock_order = False

    def adopt(
        self, config: MarconiConfig, runtime: PolicyRuntime, ledger: CheckpointLedger, stats: CacheStats
    ) -> None:
        """Take over the settings, the policy and the counters that the process's parts share."""
        self.config, self.runtime, self.ledger, self.stats = config, runtime, ledger, stats
        self.records = TreeRecords(runtime, lambda node: len(node.key), self.tree_core.holds)
        self.serving = Serving(runtime, self.records, saved_kinds(config), self.cache.page_size)
        self.held = HeldStates(runtime, self.records, self.serving, node_states, _ByName(stats))
        self.explainer = Explainer(
            runtime,
            self.held,
            self.tree_core,
            page_tokens=self.cache.page_size,
            expose_tokens=config.expose_tokens,
        )
        self.pins = Pins(self.cache, runtime, config.pin_share)
        self.storage = StorageTier(runtime, ledger.counters, config.storage_share)
        slots = self.cache.req_to_token_pool.mamba_allocator.size
        runtime.reserves.set_quotas(quotas_in_slots(config.quotas, slots))
        self.plans = {}
        self.answers = AnswerStates(self.save_inside_answer, self.cache.page_size)
        stats.states_by_kind = self._states_by_kind
        self.tuner = None
        if isinstance(runtime.eviction, Marconi):
            self.tuner = Tuner(
                runtime.eviction, config.tuning_interval, agree=Agreement(self.cache), on_tuned=stats.tuned
            )

    def forget_all(self) -> None:
        """The tree was reset, and the pools with it. What the policy has learned stays."""
        if self.runtime is None:
            return
        self.stats.flushed()
        self.pins.flushed()
        self.ledger.clear()
        self.plans.clear()
        self.answers.clear()
        self.dead_leaves.clear()
        self.storage.clear()
        self.held.clear()
        if self.events is not None:
            self.events.cleared()

    def _states_by_kind(self) -> dict[str, int]:
        return {kind_name(kind): states for kind, states in self.held.by_kind().items()}

    # ---- matching ----

    def finalize_match_result_in_tree_core(
        self, result: MatchResult, params: Any, value_chunks: list[torch.Tensor], best_value_len: int
    ) -> MatchResult:
        """As stock; the branch point is ours to choose."""
        result = super().finalize_match_result_in_tree_core(result, params, value_chunks, best_value_len)
        last = result.last_visited_node_id
        self.matched(params.req, [] if last is None else self._path(self.tree_core.node_by_id(last)))
        return result._replace(mamba_branching_seqlen=None)

    def finalize_match_result_in_cache(self, params: Any, result: MatchResult) -> MatchResult:
        """As stock, which copies the state at once; no room for the copy is a miss, where stock ends the server."""
        matched = result.best_match_node
        copies = (
            params.cow_mamba
            and not params.req.kv.holds_mamba
            and self.tree_core.get_component_device_value(matched, self.component_type) is not None
        )
        if copies and not self._room_for_copy(matched):
            return self.tree_core.empty_match_result
        return super().finalize_match_result_in_cache(params, result)

    def _room_for_copy(self, matched: Any) -> bool:
        if self.cache.shared is None:
            if slots_set_aside(pool := self.cache.req_to_token_pool) or pool.mamba_allocator.available_size():
                return True
            lock = self.cache.inc_lock_ref(matched)
            room = self.cache.mamba_evictable_size() > 0
            self.cache.dec_lock_ref(matched, lock.to_dec_params())
            return room
        missing = self.cache.shared.missing_bytes
        if missing(0, 1):
            lock = self.cache.inc_lock_ref(matched)
            self.cache.evict_for_alloc(EvictParams(num_tokens=0, mamba_num=1))
            self.cache.dec_lock_ref(matched, lock.to_dec_params())
        return not missing(0, 1)

    def matched(self, req: Req | None, path: list[tuple[int, UnifiedTreeNode]]) -> None:
        """Remember the nodes that hold the KV of a request's prompt, each with the depth of its end, for its plan."""
        if req is not None:
            req.marconi_match = path

    def _path(self, node: UnifiedTreeNode) -> list[tuple[int, UnifiedTreeNode]]:
        path, depth = [], 0
        for above in self.records.path(node):
            depth += len(above.key)
            path.append((depth, above))
        return path

    def _still(self, path: list[tuple[int, UnifiedTreeNode]]) -> list[tuple[int, UnifiedTreeNode]]:
        """`path` as it is now: other requests' matches may have split its edges."""
        above = self.tree_core.root_node
        for _, node in path:
            if node.parent is not above:
                return self._path(path[-1][1])
            above = node
        return path

    # ---- planning: called once an extend, after the request got its row and its running slot ----

    def plan_request(self, req: Req) -> None:
        """Take a slot for each checkpoint that this extend should save; none left is no error."""
        if is_probe(req):
            return
        plan = self.plans.get(req)
        if plan is None:
            plan = self.plans[req] = self._begin(req)
            if self.runs is None:  # with speculation a pass ends at no token that is known before
                self.answers.planned(req, plan)
        for offer in plan.offers:
            if req.prefix_len < offer.depth_tokens <= req.extend_end:
                self._offer(req, plan, offer)
        self.keep_within_ceiling(req)
        if rank_consensus_checker.enabled():  # SGLang's own check stops a server whose ranks differ
            rank_consensus_checker.assert_same("marconi %s: %d", req.rid, self.runtime.digest())

    def _begin(self, req: Req) -> Plan:
        path = self._still(getattr(req, "marconi_match", None) or [])
        req.marconi_match = None
        depth, last = path[-1] if path else (0, self.tree_core.root_node)
        served = None
        if req.prefix_len > 0 and not self.cache.is_root(req.last_node):
            served = self.tree_core.node_by_id(req.last_node)
        ids = req.full_untruncated_fill_ids
        ahead = None
        if self.cache.page_size == 1 and depth == len(ids) - 1:
            key = RadixKey(ids[-1:], req.extra_key, cache_salt=req.cache_salt)
            ahead = last.children.get(key.child_key(1))
        # A view for the call alone: SGLang appends to this array, which Python refuses while somebody has one.
        tokens = np.frombuffer(ids, np.int64)
        plan = self.serving.begin(Match(path, served, len(ids), req.prefix_len, ahead, tokens))
        if self.tuner is not None:
            self.tuner.step(self.runtime.tick)
        if not req.retracted_stain:
            self.stats.served(len(ids), req.prefix_len, max(plan.match.kv_tokens, req.prefix_len), plan.lost)
        wishes = getattr(req, "marconi_wishes", NO_WISHES)
        if not wishes.store:
            plan.offers, plan.last_token_beyond, plan.answer_grid = [], None, 0
        told = self.explainer.began(req, plan, served)
        if wishes.explain:
            req.customized_info = {**(req.customized_info or {}), "marconi": [told]}
        return plan

    def _offer(self, req: Req, plan: Plan, offer: Offer) -> None:
        """Take a slot for one offer, or tell why not."""
        outcome = self._try_to_save(req, plan, offer)
        self.explainer.outcome(req, offer.depth_tokens, kind_name(offer.kind), outcome)

    def _try_to_save(self, req: Req, plan: Plan, offer: Offer) -> str:
        row = self.serving.row_for(plan, offer)
        pending = PendingCheckpoint(offer.kind, offer.depth_tokens, None, row=row, plan=plan)
        room = _SlotRoom(self, insists=self._insists(req, offer))
        placed = self.held.place(pending, offer, room, self.tenant_of(req))
        return self._placed(req, pending, placed, room)

    def save_inside_answer(self, req: Req, pending: PendingCheckpoint) -> bool:
        """Take a slot for the state after `pending.position_tokens`, or keep the one that it has. Returns: whether it
        has one."""
        room = _SlotRoom(self, insists=False)
        had_room, tokens = pending.granted, pending.position_tokens
        placed = self.held.place_inside_answer(pending, tokens, room, self.tenant_of(req))
        if not had_room:
            outcome = self._placed(req, pending, placed, room)
            self.explainer.outcome(req, tokens, kind_name(pending.kind), outcome)
            self.keep_within_ceiling(req)
        return pending.granted

    def _placed(self, req: Req, pending: PendingCheckpoint, placed: Placed, room: _SlotRoom) -> str:
        """Count what became of an offer. Returns: that, for explanations."""
        kind = kind_name(pending.kind)
        if placed is Placed.REFUSED:
            self.ledger.counters["skipped_no_slot" if room.reason == "no-slot" else "refused"] += 1
            self.stats.refused(kind)
            return f"refused: {REASONS[room.reason]}"
        if placed is Placed.GRANTED:
            self.ledger.add(req, pending)
            self.ledger.counters[f"planned_{kind}"] += 1
        return _OUTCOMES[placed]

    def _insists(self, req: Req, offer: Offer) -> bool:
        """Whether the request asks for this state, whatever it is worth."""
        return offer.prompt_tokens > 0 and getattr(req, "marconi_wishes", NO_WISHES).keep

    def take_slot(self, row: int) -> torch.Tensor | None:
        """A free slot, or that of a state worth less than the one offered at `row`; None: not worth it, or none."""
        allocator = self.cache.req_to_token_pool.mamba_allocator
        # asking for more than there is room for makes a shared buffer move pages
        if allocator.schedulable_available_size():
            slot = allocator.alloc(1)
            if slot is not None:
                return slot
        return self.take_slot_of_lesser(row)

    # ---- the tree changes ----

    def redistribute_on_node_split(self, new_parent: UnifiedTreeNode, child: UnifiedTreeNode) -> None:
        """As stock: the state, and its record, stay at the lower end."""
        super().redistribute_on_node_split(new_parent, child)
        self.records.tend(child)
        self.storage.split(new_parent, child)
        if self.events is not None:
            self.events.split(new_parent, child)

    def acquire_component_lock(self, node: UnifiedTreeNode, *args: Any, **kwargs: Any) -> Any:
        """As stock; a locked state is pinned in the table."""
        result = super().acquire_component_lock(node, *args, **kwargs)
        self.held.locks_changed(node)
        return result

    def release_component_lock(self, node: UnifiedTreeNode, *args: Any, **kwargs: Any) -> None:
        """As stock; see `acquire_component_lock`."""
        super().release_component_lock(node, *args, **kwargs)
        self.held.locks_changed(node)

    def build_hicache_transfers(
        self, node: UnifiedTreeNode, phase: Any, **arguments: Any
    ) -> list[PoolTransfer] | None:
        """As stock, but for a node whose state isn't worth writing to storage."""
        if phase == CacheTransferPhase.BACKUP_STORAGE and node is self.storage.without_state:
            return None
        return super().build_hicache_transfers(node, phase, **arguments)

    def commit_hicache_transfer(
        self,
        node: UnifiedTreeNode,
        phase: Any,
        *args: Any,
        insert_result: InsertResult | None = None,
        **kwargs: Any,
    ) -> None:
        """As stock; a state that comes back from the host is held again, and one that comes from storage waits on the
        host at a node with a row, so that the policy has its say on what leaves the host."""
        held = holds_state(node)
        super().commit_hicache_transfer(node, phase, *args, insert_result=insert_result, **kwargs)
        if phase == CacheTransferPhase.PREFETCH:
            fetched = None if insert_result is None else insert_result.inserted_host_node
            if fetched is None:
                return
            node = self.tree_core.node_by_id(fetched)
            if has_state(node):
                self.held.waits(node, depth_of(node), Kind.LAST_TOKEN)
                self.ledger.counters["storage_fetched_states"] += 1
        elif phase == CacheTransferPhase.LOAD_BACK and holds_state(node):
            self.held.arrived(node, depth_of(node), Kind.LAST_TOKEN, is_new=False)
            if not held:
                self.stats.returned(kind_name(self.runtime.table.kind.item(row_of(node))))
        if self.events is not None:  # on the device again, or a copy on the host
            self.events.sync(node)


class _SlotRoom:
    """Room for one request's state: a slot. insists: whatever the state is worth; reason: why there was none"""

    def __init__(self, mamba: MarconiMambaComponent, *, insists: bool) -> None:
        self._mamba, self._insists = mamba, insists
        self.reason = ""

    def is_free(self) -> bool:
        return self._mamba.cache.req_to_token_pool.mamba_allocator.schedulable_available_size() > 0

    def take(self, claim: PendingCheckpoint) -> str | None:
        if not self._mamba.cache.spares_a_state():
            self.reason = "no-slot"
            return self.reason
        claim.slot = self._mamba.take_slot(-1 if self._insists else claim.row)
        if claim.slot is None:
            self.reason = "worth-less"
            return self.reason
        return None


class _ByName:
    """Tells the counters what comes and goes, by what operators call a kind."""

    def __init__(self, stats: CacheStats) -> None:
        self._stats = stats

    def saved(self, kind: Kind) -> None:
        self._stats.saved(kind_name(kind))

    def evicted(self, kind: Kind, reason: str) -> None:
        self._stats.evicted(kind_name(kind), reason)
