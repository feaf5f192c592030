"""Prefixes that an operator keeps: their states and the KV above them are evicted after everything else.

A pin holds one state, at the exact end of a prefix. Pins together may hold no more than `--marconi-pin-share` of the
state slots and of the KV pool. They yield only where a running request could get no memory else; that is counted.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from marconi_ext.policies.table.tree_rows import row_of

from ..node_states import holds_state
from .desk import RefusedError
from .explain import walk

if TYPE_CHECKING:
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

    from marconi_ext.policies.runtime import PolicyRuntime

CHECK_EVERY_S = 1.0
LOST_REASONS = ("expired", "unpinned", "flushed", "evicted")


@dataclass(frozen=True)
class Pin:
    """until_s: time.monotonic() at which it ends, None: never; born: of the node's row, which tells rows apart"""

    name: str
    node: UnifiedTreeNode
    row: int
    born: int
    depth_tokens: int
    until_s: float | None


class Pins:
    """All pins of one cache. Single-threaded. share: of slots and of KV that pins may hold"""

    def __init__(self, cache: UnifiedRadixCache, runtime: PolicyRuntime, share: float) -> None:
        self._cache, self._runtime, self._share = cache, runtime, share
        self._pins: dict[str, Pin] = {}
        self._due_s = 0.0
        self.ended: Counter[str] = Counter()

    @property
    def budget(self) -> dict[str, int]:
        """States, and KV tokens, that pins may hold."""
        pool = self._cache.req_to_token_pool.mamba_allocator.size
        return {
            "states": int(self._share * pool),
            "tokens": int(self._share * self._cache.token_to_kv_pool_allocator.size),
        }

    # ---- orders ----

    def pin(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """`{"do": "pin", "name", "prompt": [ids], "extra_key", "cache_salt", "seconds"}`: keep the state at the
        prompt's end. A name that is pinned already moves to this prompt."""
        name, seconds = str(command.get("name", "")), command.get("seconds")
        prompt = command.get("prompt")
        if not name or not isinstance(prompt, list) or not prompt:
            raise RefusedError("pin: want a name and a prompt of at least one token id")
        if seconds is not None and not (isinstance(seconds, int | float) and 0 < seconds < 1e9):
            raise RefusedError(f"seconds: want a positive number, got {seconds!r}")
        self.check()
        page = self._cache.page_size
        end = len(prompt) // page * page
        path, partial = walk(
            self._cache.tree_core, page, prompt, command.get("extra_key"), command.get("cache_salt")
        )
        node = path[-1][1] if path and path[-1][0] == end and partial is None else None
        if node is None or not holds_state(node) or row_of(node) < 0:
            held = max((depth for depth, at in path if at is not partial and holds_state(at)), default=0)
            raise RefusedError(
                f"no state at token {end:,}, the prefix's end (the nearest is at {held:,}): send it first, "
                "as `marconi warm` does"
            )
        row = row_of(node)
        others = {pin.node: None for pin in self._pins.values() if pin.name != name}
        self._afford({**others, node: None})
        self._end(name, "unpinned")
        until = None if seconds is None else time.monotonic() + seconds
        born = self._runtime.table.born.item(row)
        self._pins[name] = Pin(name, node, row, born, end, until)
        self._runtime.reserves.set_reserved(row, True)
        return self.report()

    def _afford(self, nodes: Mapping[UnifiedTreeNode, None]) -> None:
        budget, above = self.budget, set()
        for node in nodes:
            while node.parent is not None and node not in above:
                above.add(node)
                node = node.parent
        tokens = sum(len(node.key) for node in above)
        for what, wanted in (("states", len(nodes)), ("tokens", tokens)):
            if wanted > budget[what]:
                raise RefusedError(
                    f"pins would hold {wanted:,} {what}, and may hold {budget[what]:,}: unpin something, or start the "
                    f"server with a larger --marconi-pin-share than {self._share:g}"
                )

    def unpin(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """`{"do": "unpin", "name"}`, or `"all": true`."""
        self.check()
        names = list(self._pins) if command.get("all") else [str(command.get("name", ""))]
        if not command.get("all") and names[0] not in self._pins:
            raise RefusedError(
                f"no pin has the name {names[0]!r}; there are: {', '.join(self._pins) or 'none'}"
            )
        for name in names:
            self._end(name, "unpinned")
        return self.report()

    def answer(self, _command: Mapping[str, Any]) -> dict[str, Any]:
        """`{"do": "pins"}`: what is pinned."""
        self.check()
        return self.report()

    # ---- what becomes of them ----

    def check_if_due(self) -> None:
        """`check`, unless that was done less than a second ago. Called after every batch and while idle."""
        if self._pins and time.monotonic() >= self._due_s:
            self.check()

    def check(self) -> None:
        """End what has expired, and what had to yield."""
        now = time.monotonic()
        self._due_s = now + CHECK_EVERY_S
        for pin in list(self._pins.values()):
            if not self._holds(pin):
                self._end(pin.name, "evicted")
            elif pin.until_s is not None and now >= pin.until_s:
                self._end(pin.name, "expired")

    def flushed(self) -> None:
        """The tree is about to be emptied."""
        for name in list(self._pins):
            self._end(name, "flushed")

    def _holds(self, pin: Pin) -> bool:
        born = self._runtime.table.born.item(pin.row)
        return row_of(pin.node) == pin.row and born == pin.born and holds_state(pin.node)

    def _end(self, name: str, reason: str) -> None:
        pin = self._pins.pop(name, None)
        if pin is None:
            return
        self.ended[reason] += 1
        still = any(other.node is pin.node for other in self._pins.values())
        if not still and row_of(pin.node) == pin.row:
            self._runtime.reserves.set_reserved(pin.row, False)

    def report(self) -> dict[str, Any]:
        """Plain JSON types."""
        now = time.monotonic()
        return {
            "budget": self.budget,
            "states": len({pin.row for pin in self._pins.values()}),
            "pins": [
                {
                    "name": pin.name,
                    "depth_tokens": pin.depth_tokens,
                    "seconds_left": None if pin.until_s is None else round(max(0.0, pin.until_s - now), 1),
                }
                for pin in self._pins.values()
            ],
            "ended": {reason: self.ended[reason] for reason in LOST_REASONS},
            "yielded": self._runtime.reserves.yielded,
        }
