"""What one server can resume, as its state events tell it: docs/events.md has their format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class StateIndex:
    """Depth by block hash. Unknown events are passed over, so that newer servers don't break older readers."""

    def __init__(self) -> None:
        self._depths: dict[int, int] = {}
        self._media: dict[int, set[str]] = {}
        self._sum_tokens = 0
        self._evicts = False

    def __len__(self) -> int:
        return len(self._depths)

    def apply(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Take in a batch, in the order in which it was sent. A state that leaves twice is no error."""
        for event in events:
            kind = event.get("type")
            if kind == "StateStored":
                self._sum_tokens += event["depth_tokens"] - self._depths.get(event["block_hash"], 0)
                self._depths[event["block_hash"]] = event["depth_tokens"]
                self._media.setdefault(event["block_hash"], set()).add(event["medium"])
            elif kind == "StateRemoved":
                media = self._media.get(event["block_hash"], set())
                media.discard(event["medium"])
                if not media:
                    self._media.pop(event["block_hash"], None)
                    self._sum_tokens -= self._depths.pop(event["block_hash"], 0)
                    self._evicts = True
            elif kind == "AllBlocksCleared":
                self.clear()

    def clear(self) -> None:
        """Nothing is known any more."""
        self._depths.clear()
        self._media.clear()
        self._sum_tokens, self._evicts = 0, False

    @property
    def displaced_tokens(self) -> float:
        """Mean depth of the states where new ones push others out; 0 where none has been evicted yet."""
        return self._sum_tokens / len(self._depths) if self._evicts and self._depths else 0.0

    def resumable_tokens(self, hashes: Iterable[int]) -> int:
        """Tokens of a prompt that this server needn't prefill. hashes: of the prompt's blocks, its last token left
        out, since one token must be computed"""
        return max((self._depths[found] for found in hashes if found in self._depths), default=0)
