"""The radix cache's side of the two pools: what is free or could be, and how much leaves the tree to make room.

What leaves first is the Mamba component's choice (`state_eviction.py`).
Source of the replaced behaviour: SGLang 0.5.23, mem_cache/unified_radix_cache.py.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, EvictResult
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.utils.rank_consensus_checker import rank_consensus

from .shared_memory import SharedMemory, shared_memory_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sglang.srt.mem_cache.cache_init_params import CacheInitParams


class Evictor(Protocol):
    """What takes KV and states out of the tree.

    int8_ckpt_pool: SGLang's pool of compressed states, where there is one
    """

    int8_ckpt_pool: object | None

    def evict(self, tokens: int, states: int, kv: list[torch.Tensor], slots: list[torch.Tensor]) -> None:
        """Until `tokens` of KV and `states` slots are free. kv, slots: get what the caller is to free"""

    def evict_bytes(self, wanted: int, kv: list[torch.Tensor], slots: list[torch.Tensor]) -> bool:
        """Until `wanted` bytes are free; kv, slots: as in `evict`. Returns: False where nothing more may go."""


class PooledRadixCache(UnifiedRadixCache):
    """SGLang's radix cache over a pool of KV and one of states, or over one buffer for both. shared: that buffer"""

    shared: SharedMemory | None

    def __init__(self, params: CacheInitParams) -> None:
        self.shared = shared_memory_of(params.token_to_kv_pool_allocator)
        super().__init__(params)

    @property
    def mamba(self) -> Evictor:
        """The component that owns the recurrent states."""
        return self.components[ComponentType.MAMBA]

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
