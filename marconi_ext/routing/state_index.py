"""What one server can resume, as its state events tell it: docs/events.md has their format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from marconi_ext.routing.rules import ENDS


class StateIndex:
    """Depth by block hash. Unknown events are passed over, so that newer servers don't break older readers."""

    def __init__(self) -> None:
        self._depths: dict[int, int] = {}
        self._media: dict[int, set[str]] = {}
        self._ends: set[int] = set()
        self.depth_sum = 0  # tokens, of all states

    def __len__(self) -> int:
        return len(self._depths)

    def apply(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Take in a batch, in the order in which it was sent. A state that leaves twice is no error."""
        for event in events:
            kind = event.get("type")
            if kind == "StateStored":
                self._store(event["block_hash"], event)
            elif kind == "StateRemoved":
                media = self._media.get(event["block_hash"], set())
                media.discard(event["medium"])
                if not media:
                    self._media.pop(event["block_hash"], None)
                    self.depth_sum -= self._depths.pop(event["block_hash"], 0)
                    self._ends.discard(event["block_hash"])
            elif kind == "AllBlocksCleared":
                self.clear()

    def clear(self) -> None:
        """Nothing is known any more."""
        self._depths.clear()
        self._media.clear()
        self._ends.clear()
        self.depth_sum = 0

    def resumable_tokens(self, hashes: Iterable[int]) -> int:
        """Tokens of a prompt that this server needn't prefill. hashes: of the prompt's blocks, its last token left
        out, since one token must be computed"""
        return self.resume(hashes)[0]

    def resume(self, hashes: Iterable[int]) -> tuple[int, bool]:
        """As `resumable_tokens`, and whether a conversation ended there, which the prompt goes on from."""
        deepest = max(
            (found for found in hashes if found in self._depths), key=self._depths.__getitem__, default=0
        )
        return self._depths.get(deepest, 0), deepest in self._ends

    def _store(self, block: int, event: Mapping[str, Any]) -> None:
        self.depth_sum += event["depth_tokens"] - self._depths.get(block, 0)
        self._depths[block] = event["depth_tokens"]
        self._media.setdefault(block, set()).add(event["medium"])
        if event["kind"] in ENDS:
            self._ends.add(block)
