"""What SGLang's nodes say of their states, as `HeldStates` asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

if TYPE_CHECKING:
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

_MAMBA = ComponentType.MAMBA


def holds_state(node: UnifiedTreeNode | None) -> bool:
    """Whether a state is at the node, on the device."""
    return node is not None and node.component_data[_MAMBA].value is not None


def locks(node: UnifiedTreeNode) -> int:
    """Requests that keep the node's state where it is."""
    return node.component_data[_MAMBA].lock_ref
