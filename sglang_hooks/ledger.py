"""Who holds which state slot between its allocation and its publication: every slot leaves exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from marconi_ext.policies.held_states import Claim
from marconi_ext.policies.table.checkpoints import Kind


@dataclass(eq=False)
class PendingCheckpoint(Claim):
    """A slot taken for a request and not yet in the tree.

    kind: Kind - where in the request it lies
    position_tokens: int - the state stands for this many of the request's tokens
    slot: int64[1] tensor - row of the state pool; None until there is room
    written: bool - the forward that fills the slot has been launched; unwritten slots are never published
    """

    kind: Kind
    position_tokens: int
    slot: Any
    written: bool = False


class CheckpointLedger:
    """Pending checkpoints by request, and counters of what became of them.

    A slot enters through `add` and leaves through `take`, `take_written_up_to` or `clear`; whoever takes it
    publishes or frees it at once.
    """

    def __init__(self) -> None:
        self._pending: dict[Hashable, list[PendingCheckpoint]] = {}
        self.counters: Counter[str] = Counter()

    def add(self, request: Hashable, checkpoint: PendingCheckpoint) -> None:
        """Record a slot that `request` now holds."""
        self._pending.setdefault(request, []).append(checkpoint)

    def unwritten(self, request: Hashable) -> list[PendingCheckpoint]:
        """The request's checkpoints that the next forward must fill; doesn't take them."""
        return [c for c in self._pending.get(request, ()) if not c.written]

    def take_written_up_to(self, request: Hashable, up_to_tokens: int) -> list[PendingCheckpoint]:
        """Take what can be published for the request's first `up_to_tokens` tokens, shallow first."""
        held = self._pending.get(request, [])
        ready = [c for c in held if c.written and c.position_tokens <= up_to_tokens]
        rest = [c for c in held if c not in ready]
        if rest:
            self._pending[request] = rest
        else:
            self._pending.pop(request, None)
        return sorted(ready, key=lambda c: c.position_tokens)

    def take(self, request: Hashable) -> list[PendingCheckpoint]:
        """Take all that the request still holds (it finished, was retracted or aborted)."""
        return self._pending.pop(request, [])

    def clear(self) -> None:
        """Forget everything: the pool itself was cleared."""
        self._pending.clear()

    def all_pending(self) -> Iterator[PendingCheckpoint]:
        """Every checkpoint that some request holds."""
        return chain.from_iterable(self._pending.values())

    @property
    def held_slots(self) -> int:
        """Slots that are in no free list and not yet in the tree."""
        return sum(len(held) for held in self._pending.values())
