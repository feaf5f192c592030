"""What an operator sees of the extension: one log line at start, a section in /server_info."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from marconi_ext import __version__

if TYPE_CHECKING:
    from .process_state import Live

logger = logging.getLogger(__name__)


def announce(state: Live, scheduler: Any) -> None:
    """Log the one line that says that the extension is live and on what."""
    cache = state.cache
    logger.warning(
        "marconi-ext %s live: checkpoints=%s slots=%d page=%d layers=%d message_headers=%d policy=%s tp_rank=%d",
        __version__,
        ",".join(state.config.checkpoints),
        cache.req_to_token_pool.mamba_allocator.size,
        cache.page_size,
        state.forward.layers,
        len(cache.mamba.serving.headers.headers),
        state.config.policy,
        scheduler.ps.tp_rank if hasattr(scheduler, "ps") else 0,
    )


def report(state: Live) -> dict[str, Any]:
    """The section `marconi` of /server_info's internal states: plain JSON types."""
    section = {} if state.runs is None else {"speculation": {"ends": dict(state.runs.ends)}}
    return section | {
        "version": __version__,
        "live": True,
        "config": state.config.model_dump(mode="json") | {"eviction": state.config.policy},
        "counters": {name: int(count) for name, count in sorted(state.ledger.counters.items())},
        "slots": state.cache.slot_census(),
        "table": state.cache.census.totals(),
        "stats": state.stats.snapshot(),
        "kv": state.cache.kv_census(),
        "policy": state.cache.policy_facts(),
        **state.cache.operator_facts(),
    }
