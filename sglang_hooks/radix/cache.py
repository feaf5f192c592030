"""SGLang's unified radix cache, publishing several exact checkpoints of one request."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.environ import envs
from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import (
    EvictParams,
    EvictResult,
    InsertParams,
    InsertResult,
)
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.utils.rank_consensus_checker import rank_consensus

from marconi_ext import __version__
from marconi_ext.config import MarconiConfig

from ..observe.split_advice import SplitAdvice
from ..observe.stats import CacheStats
from ..observe.tree_dump import TreeDumps
from ..operator.desk import Desk
from ..policy import build_runtime, currency_of
from ..process_state import Live, go_live
from ..recurrence import registry
from ..recurrence.forward import ForwardCheckpoints
from ..recurrence.interface import SaverContext
from ..recurrence.speculation import AcceptedRuns
from ..recurrence.stage import layers_here
from .component import MarconiMambaComponent
from .kv_eviction import MarconiFullComponent
from .ledger import CheckpointLedger
from .shared_memory import SharedMemory, shared_memory_of
from .table_census import TableCensus
from .tree_core import depth_of, register
from .twins import Twins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.registry import TreeCacheBuildContext
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import NodeId, UnifiedTreeNode

logger = logging.getLogger(__name__)


class MarconiRadixCache(UnifiedRadixCache):
    """Adds to stock: one insert a checkpoint, shallow first, and a census of the state slots."""

    @property
    def mamba(self) -> MarconiMambaComponent:
        """The component that owns the recurrent states."""
        return self.components[ComponentType.MAMBA]

    def __init__(self, params: CacheInitParams) -> None:
        self.shared: SharedMemory | None = shared_memory_of(params.token_to_kv_pool_allocator)
        super().__init__(params)
        self.census = TableCensus(self)
        self._skips_state_locks = envs.SGLANG_OPT_MAMBA_SKIP_DECODE_LOCK.get()

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
            if req.finished():
                self.publish(req, up_to, **kwargs)
        finally:
            mamba.publishing = mamba.saving_for = None
        mamba.keep_within_ceiling(req)

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
        if self.disable or not core.plain or lock is None or self._skips_state_locks:
            return None
        if (
            lock.receipt.skipped_lock_components
            or req.session is not None
            or req.kv_rotation_base is not None
        ):
            return None
        node = core.node_by_id(lock.node)
        return node if depth_of(node) == req.kv.cache_protected_len else None

    @property
    def simple(self) -> bool:
        """Device memory alone, in pools that we know: what leaves the tree is freed at once."""
        return (
            self.tree_core.plain
            and (self.shared is not None or type(self.token_to_kv_pool_allocator) is TokenToKVPoolAllocator)
            and self.mamba.int8_ckpt_pool is None
            and not self.disable
        )

    @rank_consensus(same_params=["params", "allocation_reclaim_satisfied is not None"], same_results=True)
    def evict_for_alloc(
        self, params: EvictParams, *, allocation_reclaim_satisfied: Callable[[], bool] | None = None
    ) -> EvictResult:
        """As stock, without its machinery for several tiers: the same victims, freed together at the end."""
        if allocation_reclaim_satisfied is not None or not self.simple:
            return super().evict_for_alloc(params, allocation_reclaim_satisfied=allocation_reclaim_satisfied)
        started = time.perf_counter()
        if self.shared is None:
            freed = EvictResult()
            with self.freeing(freed) as (kv, slots):
                self.mamba.evict(params.num_tokens, params.mamba_num, kv, slots)
        else:
            freed = self._evict_bytes(params)
        self.update_eviction_metrics(freed.num_tokens_evicted, started)
        return freed

    def _evict_bytes(self, params: EvictParams) -> EvictResult:
        """Whatever is worth least goes, until the shared buffer has room for what `params` lacks."""
        shared, freed = self.shared, EvictResult()
        assert shared is not None
        tokens, states = shared.available()
        tokens, states = tokens + params.num_tokens, states + params.mamba_num
        more = True
        while more and (missing := shared.missing_bytes(tokens, states)):
            with self.freeing(freed) as (kv, slots):
                more = self.mamba.evict_bytes(missing, kv, slots)
        return freed

    @contextmanager
    def freeing(self, freed: EvictResult) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor]]]:
        """Two lists for KV indices and state slots that leave the tree; they are freed together, and counted."""
        kv: list[torch.Tensor] = []
        slots: list[torch.Tensor] = []
        try:
            yield kv, slots
        finally:
            allocator = self.token_to_kv_pool_allocator
            if self.shared is not None and self.page_size > 1:
                for leaf in kv:  # whole pages, so that no index has to be read back to find them
                    allocator.free_segment(leaf, start_pos=0)
            elif kv:
                allocator.free(kv[0] if len(kv) == 1 else torch.cat(kv))
            if slots:
                free = self.req_to_token_pool.mamba_allocator.free
                free(slots[0] if len(slots) == 1 else torch.cat(slots))
            freed.num_tokens_evicted += sum(map(len, kv))
            freed.mamba_num_evicted += len(slots)

    @rank_consensus
    def write_backup_storage(self, node_id: NodeId) -> None:
        """As stock; what isn't worth it stays out of storage."""
        if self.enable_storage and self.cache_controller is not None:
            node = self.tree_core.node_by_id(node_id)
            write = super().write_backup_storage
            self.mamba.storage.write(node, lambda found: write(found.id))

    def reclaimable_slots(self) -> int:
        """States that could be held if all that may go went."""
        slots = (
            self.req_to_token_pool.mamba_allocator.schedulable_available_size() + self.mamba_evictable_size()
        )
        if self.shared is not None:
            slots += self.full_evictable_size() * self.shared.kv_bytes // self.shared.state_bytes
        return slots

    def spares_a_state(self) -> bool:
        """Whether a checkpoint may take a slot. In a shared buffer each further request needs a running slot and locks
        the state that it starts from, and those that run need their next tokens; else the next request waits
        (`concurrency.has_slots_for`)."""
        pool, shared = self.req_to_token_pool, self.shared
        if shared is None:
            return True
        tokens = 2 * self.page_size * (pool.size - pool.available_size())
        kept = 2 * pool.available_size() - (-tokens * shared.kv_bytes // shared.state_bytes)
        return self.reclaimable_slots() > kept

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


def build_cache(
    create_unified_radix_cache: Callable[..., BasePrefixCache],
    ctx: TreeCacheBuildContext,
    *,
    config: MarconiConfig,
) -> BasePrefixCache:
    """Build the extension's cache for a hybrid whose family is live; else stock's, said once in the log."""
    reason = why_stock(ctx)
    if reason is not None:
        logger.warning("marconi-ext %s: not live: %s; serving as stock SGLang", __version__, reason)
        return create_unified_radix_cache(ctx)
    our_components(ctx.params)
    cache = create_unified_radix_cache(ctx, cache_class=MarconiRadixCache)
    pool = ctx.params.req_to_token_pool
    ledger = CheckpointLedger()
    currency = currency_of(ctx.model_config.model_path)
    runtime = build_runtime(config, currency if cache.shared is None else cache.shared.currency(currency))
    stats = CacheStats()
    stats.strict = envs.SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY.get() > 0
    cache.mamba.adopt(config, runtime, ledger, stats)
    if config.events != "none":
        from ..observe.state_events import start

        cache.mamba.events = start(cache, config, ctx.server_args.kv_events_config)
    cache.mamba.keeps_stock_order = ctx.params.eviction_policy.lower() != "lru"
    # At page size 1 any length can be donated; above it SGLang tracks states during decode, for most models.
    tracks = cache.page_size > 1 and not registry.needs_no_tracking(_architecture(ctx))
    cache.mamba.tracks_decode = tracks
    if not tracks:
        pool.mamba_initial_tracking_slots = 0
    layers = layers_here(ctx.tp_worker.model_runner.model, pool.mamba_map)
    context = SaverContext(layers, lambda name, n: ledger.counters.update({name: n}))
    backend = linear_backend(ctx)
    family = registry.family_of(backend)
    assert family is not None, "why_stock has looked"
    forward = ForwardCheckpoints(ledger, family.saver(context), stats, backend, layers)
    # with an admin key, nobody else can ask for a dump
    dumps = TreeDumps(expose_tokens=config.expose_tokens or bool(ctx.server_args.admin_api_key))
    runs = AcceptedRuns(pool) if ctx.server_args.speculative_algorithm else None
    cache.mamba.runs = runs
    pins = cache.mamba.pins
    orders = {"pin": pins.pin, "unpin": pins.unpin, "pins": pins.answer}
    desk = Desk({"explain": cache.mamba.explainer.answer, **orders})
    go_live(Live(config, ledger, forward, cache, stats, dumps, Twins(cache), desk, SplitAdvice(), runs))
    return cache


def our_components(params: CacheInitParams) -> None:
    """Have SGLang build our components of the cache, and our tree core, in place of its own."""
    params.tree_core_backend = register()
    params.component_registry_override = {
        **(params.component_registry_override or {}),
        ComponentType.FULL: MarconiFullComponent,
        ComponentType.MAMBA: MarconiMambaComponent,
    }


def why_stock(ctx: TreeCacheBuildContext) -> str | None:
    """Why this model can't have exact checkpoints, or None."""
    model = _architecture(ctx)
    if not ctx.is_hybrid_ssm:
        return f"{model} has no recurrent state"
    reason = registry.why_stock(model)
    if reason is not None:
        return f"{model}: {reason}"
    backend, family = linear_backend(ctx), registry.family_named(model)
    if family is None or family is not registry.family_of(backend):
        return f"{model} runs on {type(backend).__name__}, whose states aren't known to be exact"
    conflict = family.conflict_with(ctx.server_args)
    return None if conflict is None else f"{model}: {conflict}"


def _architecture(ctx: TreeCacheBuildContext) -> str:
    name: str = ctx.model_config.hf_config.architectures[0]
    return name


def linear_backend(ctx: TreeCacheBuildContext) -> object:
    """SGLang's backend of the recurrent layers; None where the model runs without a hybrid backend."""
    return getattr(ctx.tp_worker.model_runner.attn_backend, "linear_attn_backend", None)
