"""When a round of the tuner takes effect: at the same request on every rank of every pipeline stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache


class Agreement:
    """Asked by every rank about the same requests, in the same order.

    The first stage decides, all its tensor-parallel ranks together. Later stages come to a request after it, so they
    are told what it decided; were they asked, the first stage would stand still until the last had caught up.
    """

    def __init__(self, cache: UnifiedRadixCache) -> None:
        self._cache = cache

    def __call__(self, _request: int, ready: bool) -> bool:
        """Whether the round takes effect now. `ready` counts on the first stage alone."""
        cache = self._cache
        if cache.tp_world_size == 1 and cache.pp_size == 1:
            return ready
        flag = torch.tensor(int(ready))
        cache._drain_async_work()
        cache._all_reduce(flag, torch.distributed.ReduceOp.MIN)
        return bool(flag.item())
