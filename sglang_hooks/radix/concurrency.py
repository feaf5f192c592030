"""How many requests may run at once on a pool of state slots, and when the next one waits for a slot.

A running request holds its running slot and the slots that SGLang tracks it in (none at page size 1, for then the
running slot itself is what is kept). Until its first batch has copied the state that it starts from, it locks that in
the tree. Stock's cap reckons with three and the tracked ones. States that are being saved need slots as well: where
there is none, the next request waits until they are in the tree, one batch later, instead of the cap leaving room for
them at all times.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from operator import length_hint
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

    from .pools import PooledRadixCache

logger = logging.getLogger(__name__)

RUNNING_AND_LOCKED = 2  # states of a request


class _WithRatio:
    """SGLang's configurator of pools, with other slots a request."""

    def __init__(self, configurator: Any, slots_per_request: int) -> None:
        self._configurator = configurator
        self._slots_per_request = slots_per_request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._configurator, name)

    def _calculate_mamba_ratio(self) -> int:
        return self._slots_per_request


def most_requests(original: Callable[..., int], configurator: Any, token_capacity: int) -> int:
    """SGLang's `resolve_max_num_reqs`, with the slots that a request has here; what the user asks for stays a bound."""
    if not _is_ours(configurator):
        return original(configurator, token_capacity)
    from sglang.srt.runtime_context import get_schedule

    from ..recurrence.registry import needs_no_tracking

    stock = configurator._calculate_mamba_ratio()
    tracked = not needs_no_tracking(configurator.model_config.hf_config.architectures[0])
    ours = slots_per_request(stock, configurator.page_size if tracked else 1)
    found, slots = (
        original(_WithRatio(configurator, ours), token_capacity),
        get_schedule().max_mamba_cache_size,
    )
    if found > slots // stock:
        logger.warning(
            "marconi-ext: up to %d requests at once on %d state slots, %d slots each (stock: %d requests); "
            "--max-running-requests sets fewer",
            found,
            slots,
            ours,
            slots // stock,
        )
    return found


def slots_per_request(stock: int, page_tokens: int) -> int:
    """State slots that a running request holds or locks. stock: as SGLang reckons, the tracked ones and three;
    page_tokens: 1 where it tracks none"""
    return min(RUNNING_AND_LOCKED, stock) if page_tokens == 1 else stock - 1


def has_slots_for(cache: PooledRadixCache, req: Req, admitted: Sequence[Req]) -> bool:
    """Whether a request can join those that were `admitted` to a batch and have no slots yet.

    One state more may leave what can be evicted: the one that it starts from.
    """
    pool = cache.req_to_token_pool
    needed = 1 + req.mamba_host_hit_length
    for one in (*admitted, req):
        needed += not one.kv.holds_mamba
        if one.kv.mamba_ping_pong_track_buffer is None:
            needed += pool.mamba_initial_tracking_slots
    return cache.reclaimable_slots() + slots_set_aside(pool) >= needed


def slots_set_aside(pool: Any) -> int:
    """Free slots that SGLang has taken out of the free list for the matches of the batch that it makes."""
    return length_hint(getattr(pool.mamba_allocator, "_alloc_iter", None) or ())


def _is_ours(configurator: Any) -> bool:
    """Whether the extension will be live on this model, in pools whose size doesn't hang on stock's ratio."""
    from sglang.srt.runtime_context import get_memory

    from ..flags import config_of
    from ..recurrence.registry import family_named

    args = configurator.server_args
    if config_of(args) is None or configurator.mambaish_config is None or configurator.is_draft_worker:
        return False
    if get_memory().disable_radix_cache or get_memory().enable_unified_memory:
        return False
    if not configurator.spec_algorithm.is_none():  # its scratch memory was reckoned with stock's cap
        return False
    model = configurator.model_config.hf_config.architectures[0]
    family = family_named(model)
    return family is not None and model not in family.refused and family.conflict_with(args, model) is None
