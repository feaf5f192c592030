"""KV and states in one buffer of bytes (`--enable-unified-memory`): either makes room for the other.

SGLang's allocator moves the border between the two; what has to go for a request is ours to choose, by worth per
byte, whichever kind it is. What stock leaves out of a request's price is charged (`prefill_budget.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.allocator.unified_mamba import UnifiedMambaTokenToKVPoolAllocator

from marconi_ext.policies.currency import Currency

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


@dataclass(frozen=True)
class SharedMemory:
    """Prices of the two kinds in the buffer that `allocator` divides.

    kv_bytes: of a token, all layers
    state_bytes: of a state, all layers, SSM and conv
    total_bytes: what both kinds can have together
    """

    allocator: UnifiedMambaTokenToKVPoolAllocator
    kv_bytes: int
    state_bytes: int
    total_bytes: int

    def currency(self, slots: Currency) -> Currency:
        """`slots`, which has a price of one a state and none for KV, in bytes."""
        return replace(slots, state_bytes=float(self.state_bytes), kv_bytes_per_token=float(self.kv_bytes))

    def available(self) -> tuple[int, int]:
        """KV tokens, or states, for which there is room, as SGLang's allocator counts it."""
        return (
            self.allocator.available_size(),
            self.allocator.mamba_allocator.schedulable_available_size(),
        )

    def missing_bytes(self, tokens: int, states: int) -> int:
        """At least so many bytes have to go until `tokens` of KV are available, and `states`; 0: they are.

        Frees that SGLang has put off are carried out first.
        """
        self.allocator.flush_deferred_full_frees()
        tokens_available, states_available = self.available()
        missing = 0  # what is left over that makes no whole token or state is unknown, hence the ones
        if tokens > tokens_available:
            missing += (tokens - tokens_available - 1) * self.kv_bytes + 1
        if states > states_available:
            missing += (states - states_available - 1) * self.state_bytes + 1
        return missing

    def states_beyond(self, req: Req, tracking_slots: int) -> int:
        """States that a new request will hold and SGLang's admission leaves out: those that it tracks into, and the
        one in the tree that it locks until it has copied it."""
        return 0 if req.kv.mamba_ping_pong_track_buffer is not None else tracking_slots + 1


def shared_memory_of(allocator: Any) -> SharedMemory | None:
    """The shared buffer behind SGLang's allocator, while it is empty; None: a pool each for KV and states."""
    if not isinstance(allocator, UnifiedMambaTokenToKVPoolAllocator):
        return None
    return SharedMemory(
        allocator,
        kv_bytes=allocator.full_attn_allocator.entry_bytes,
        state_bytes=allocator.mamba_allocator.entry_bytes,
        total_bytes=allocator.full_attn_allocator._current_gap_bytes(),
    )
