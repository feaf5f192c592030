"""Puts the extension together in a scheduler process: the cache, its policy, and all that watches or saves for them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sglang.srt.environ import envs

from marconi_ext import __version__
from marconi_ext.config import MarconiConfig

from .ledger import CheckpointLedger
from .observe.split_advice import SplitAdvice
from .observe.tree_dump import TreeDumps
from .operator.desk import Desk
from .policy import build_runtime, currency_of
from .process_state import Live, go_live
from .radix.cache import MarconiRadixCache, our_components
from .radix.twins import Twins
from .recurrence import registry
from .recurrence.forward import ForwardCheckpoints
from .recurrence.interface import SaverContext
from .recurrence.speculation import AcceptedRuns
from .recurrence.stage import layers_here
from .stats import CacheStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache
    from sglang.srt.mem_cache.registry import TreeCacheBuildContext

logger = logging.getLogger(__name__)


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
    cache.sends_kv = ctx.server_args.disaggregation_mode == "prefill"
    pool = ctx.params.req_to_token_pool
    ledger = CheckpointLedger()
    currency = currency_of(ctx.model_config.model_path)
    runtime = build_runtime(config, currency if cache.shared is None else cache.shared.currency(currency))
    stats = CacheStats()
    stats.strict = envs.SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY.get() > 0
    cache.mamba.adopt(config, runtime, ledger, stats)
    if config.events != "none":
        from .observe.state_events import start

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
    split = None if cache.shared is not None else SplitAdvice(stats, cache.slot_census)
    go_live(Live(config, ledger, forward, cache, stats, dumps, Twins(cache), desk, split, runs))
    return cache


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
    conflict = family.conflict_with(ctx.server_args, model)
    return None if conflict is None else f"{model}: {conflict}"


def _architecture(ctx: TreeCacheBuildContext) -> str:
    name: str = ctx.model_config.hf_config.architectures[0]
    return name


def linear_backend(ctx: TreeCacheBuildContext) -> object:
    """SGLang's backend of the recurrent layers; None where the model runs without a hybrid backend."""
    return getattr(ctx.tp_worker.model_runner.attn_backend, "linear_attn_backend", None)
