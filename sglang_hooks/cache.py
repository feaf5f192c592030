"""SGLang's unified radix cache, publishing several exact checkpoints of one request."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from marconi_ext import __version__
from marconi_ext.config import MarconiConfig

from .component import MarconiMambaComponent
from .forward import ForwardCheckpoints
from .kv_eviction import MarconiFullComponent
from .ledger import CheckpointLedger
from .live import Live, go_live
from .policy import build_keeper, currency_of
from .stages import scan_stages
from .stats import CacheStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache
    from sglang.srt.mem_cache.registry import TreeCacheBuildContext

logger = logging.getLogger(__name__)


class MarconiRadixCache(UnifiedRadixCache):
    """Adds to stock: one insert a checkpoint, shallow first, and a census of the state slots."""

    @property
    def mamba(self) -> MarconiMambaComponent:
        """The component that owns the recurrent states."""
        return self.components[ComponentType.MAMBA]

    def reset(self) -> None:
        """As stock; SGLang clears the pools in the same step, so pending slots are forgotten, not freed."""
        super().reset()
        self.mamba.forget_all()

    def checkpoint_into_tree(self, req: Req, *, up_to: int, **kwargs: Any) -> None:
        """Insert the request's written checkpoints up to `up_to` tokens, then, if it finished, its last state.

        Each insert is stock's own: it frees the KV that the tree already has, points the request's row at the
        tree's, and moves the request's lock down.
        """
        for checkpoint in self.mamba.ledger.take_written_up_to(req, up_to):
            self.mamba.publishing = checkpoint
            try:
                super().checkpoint_into_tree(req, up_to=checkpoint.position_tokens, **kwargs)
            finally:
                self.mamba.publishing = None
        if req.finished():
            super().checkpoint_into_tree(req, up_to=up_to, **kwargs)

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
        """KV tokens: the pool's, free ones, and what the tree holds."""
        allocator = self.token_to_kv_pool_allocator
        return {
            "pool": allocator.size,
            "free": allocator.available_size(),
            "cached": self.full_evictable_size() + self.full_protected_size(),
        }

    def policy_facts(self) -> dict[str, Any]:
        """What decides here, so that a simulator can be set up like it."""
        keeper, config = self.mamba.keeper, self.mamba.config
        return {
            "name": config.policy,
            "kinds": sorted(int(kind) for kind in self.mamba.serving.kinds),
            "currency": asdict(keeper.currency),
            "requests": keeper.tick,
            "parameters": {name: float(value) for name, value in keeper.eviction.parameters().items()},
            "counts": dict(sorted(keeper.counts.items())),
            "bootstrap": [config.bootstrap_window_size, config.bootstrap_multiplier, config.tuning_interval],
            "tunings": [] if self.mamba.tuner is None else self.mamba.tuner.applied[-1_000:],
        }


def build_cache(
    create_unified_radix_cache: Callable[..., BasePrefixCache],
    ctx: TreeCacheBuildContext,
    *,
    config: MarconiConfig,
) -> BasePrefixCache:
    """Build the extension's cache for a Mamba2 hybrid; any other model gets stock's, said once in the log."""
    reason = why_stock(ctx)
    if reason is not None:
        logger.warning("marconi-ext %s: not live: %s; serving as stock SGLang", __version__, reason)
        return create_unified_radix_cache(ctx)
    ctx.params.component_registry_override = {
        **(ctx.params.component_registry_override or {}),
        ComponentType.FULL: MarconiFullComponent,
        ComponentType.MAMBA: MarconiMambaComponent,
    }
    cache = create_unified_radix_cache(ctx, cache_class=MarconiRadixCache)
    pool = ctx.params.req_to_token_pool
    ledger = CheckpointLedger()
    keeper = build_keeper(config, currency_of(ctx.model_config.model_path))
    stats = CacheStats()
    cache.mamba.adopt(config, keeper, ledger, stats)
    cache.mamba.keeps_stock_order = ctx.params.eviction_policy.lower() != "lru"
    if cache.page_size == 1:
        pool.mamba_initial_tracking_slots = 0  # any length can be donated: nothing is tracked during decode
    forward = ForwardCheckpoints(ledger, scan_stages(), len(pool.mamba_map), stats)
    go_live(Live(config, ledger, forward, cache, stats))
    return cache


def why_stock(ctx: TreeCacheBuildContext) -> str | None:
    """Why this model can't have exact checkpoints, or None."""
    from sglang.srt.layers.attention.hybrid_linear_attn_backend import Mamba2AttnBackend

    model = ctx.model_config.hf_config.architectures[0]
    if not ctx.is_hybrid_ssm:
        return f"{model} has no recurrent state"
    backend = getattr(ctx.tp_worker.model_runner.attn_backend, "linear_attn_backend", None)
    if not isinstance(backend, Mamba2AttnBackend):
        return f"{model} has recurrent states of another kind than Mamba2 ({type(backend).__name__})"
    return None
