"""Who is told when a state may have come to a node or left it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode


class StateWatcher(Protocol):
    """What publishes events about states (`observe/state_events.py`)."""

    def sync(self, node: UnifiedTreeNode) -> None:
        """The state at `node` may have changed."""

    def split(self, upper: UnifiedTreeNode, lower: UnifiedTreeNode) -> None:
        """`upper` has a part of the KV that was `lower`'s."""

    def cleared(self) -> None:
        """The tree was reset."""

    def flush(self) -> None:
        """Send what has gathered: after every batch and while idle."""
