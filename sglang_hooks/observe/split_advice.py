"""Warns where a server's memory is split between KV and states far from what its traffic wants.

Looked at every thousand requests, said once until it changes. `marconi size` tells the best split of a trace.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..stats import CacheStats

logger = logging.getLogger(__name__)

WINDOW_REQUESTS = 1_000
MUCH_LOST = 0.05  # of prompt tokens, to states that were evicted
MANY_FREE = 0.25  # of the slots
FLAG = "--mamba-full-memory-ratio"


def advise(
    prompt_tokens: int, lost_to_evicted: int, evictions: Mapping[str, int], slots: Mapping[str, int]
) -> str | None:
    """What to change, of one window of requests; None: nothing. evictions: states by reason"""
    states = sum(evictions.values())
    if prompt_tokens and lost_to_evicted > MUCH_LOST * prompt_tokens:
        return (
            f"{100 * lost_to_evicted / prompt_tokens:.1f} % of prompt tokens had KV and were prefilled again because "
            f"their states had been evicted: states want more memory. Raise {FLAG}; `marconi size` finds how far"
        )
    if states and evictions.get("kv-evicted", 0) > states / 2 and slots["free"] > MANY_FREE * slots["pool"]:
        return (
            f"{evictions['kv-evicted']:,} states left because their KV was evicted, while {slots['free']:,} of "
            f"{slots['pool']:,} state slots are free: KV wants more memory. Lower {FLAG}; `marconi size` finds how far"
        )
    return None


class SplitAdvice:
    """Looks at the counters of one process. slots: counts the pool's by owner, as `slot_census` does"""

    def __init__(self, stats: CacheStats, slots: Callable[[], Mapping[str, int]]) -> None:
        self._stats, self._slots = stats, slots
        self._requests = self._prompt_tokens = self._lost = 0
        self._evictions: Counter[str] = Counter()
        self._said = ""

    def look_if_due(self) -> None:
        """Called after every batch."""
        stats = self._stats
        if stats.requests - self._requests < WINDOW_REQUESTS:
            return
        evictions: Counter[str] = Counter()
        for (_, reason), states in stats.evictions.items():
            evictions[reason] += states
        grown = {reason: count - self._evictions[reason] for reason, count in evictions.items()}
        found = advise(
            stats.prompt_tokens - self._prompt_tokens,
            stats.lost_tokens["evicted"] - self._lost,
            grown,
            self._slots(),
        )
        self._requests, self._prompt_tokens = stats.requests, stats.prompt_tokens
        self._lost, self._evictions = stats.lost_tokens["evicted"], evictions
        wants = "" if found is None else "states" if "states want" in found else "KV"
        if found is not None and wants != self._said:
            logger.warning("marconi-ext: in the last %d requests %s", WINDOW_REQUESTS, found)
        self._said = wants
