"""What a batch's prefill may take of a buffer that KV and states share (`--enable-unified-memory`).

SGLang's admission counts evictable KV as room for KV and evictable states as room for states; here all that can go
counts for both, or a buffer full of one kind would let nothing in. A prompt's next piece waits for room instead of
failing.
Source of the replaced behaviour: SGLang 0.5.23, mem_cache/prefill_budget.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.prefill_budget import PrefillBudget

if TYPE_CHECKING:
    from .pools import PooledRadixCache


class SharedPrefillBudget(PrefillBudget):
    """As stock; a state that can go is room for KV, too, and no more is promised than there is.

    may_wait: whether requests run whose end will make room for one that is prefilled in pieces
    """

    tree_cache: PooledRadixCache
    may_wait = False
    _copy_paid = False

    def _available_and_evictable(self) -> int:
        shared = self.tree_cache.shared
        assert shared is not None
        in_states = self.tree_cache.mamba_evictable_size() * shared.state_bytes // shared.kv_bytes
        return super()._available_and_evictable() + in_states

    def fit_chunk(self, *, extend_input_len: int, max_new_tokens: int, chunk_limit: int) -> int | None:
        """As much of the next piece as there is room for now; None: it waits. Stock takes the whole of it, and ends
        the server where that fails."""
        room = (self.remaining_current - self.page_size) // self.page_size * self.page_size
        if min(extend_input_len, chunk_limit) <= room:
            return chunk_limit
        return room if room > 0 else None if self.may_wait else chunk_limit

    def reserve(self, extend_input_len: int, max_new_tokens: int, **kwargs: Any) -> None:
        """As stock; the first one pays for the copy of a state, which the match of a request takes that is then not
        admitted."""
        super().reserve(extend_input_len, max_new_tokens, **kwargs)
        if not self._copy_paid:
            self._copy_paid = True
            copy_tokens = self.allocator.mamba_slot_full_token_cost()
            self.total_offset += copy_tokens
            self.current_offset += copy_tokens
