"""With a host tier: the same utility says which leaves are demoted and what leaves the host.

Stock orders both by last access. Its own walks stay; what changes is the key that they sort leaves by, and which
state stands at the end of the host's list when it is taken from there.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

from marconi_ext.policies.runtime import PolicyRuntime
from marconi_ext.policies.table.tree_rows import row_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedLRUList, UnifiedTreeNode

Utility = tuple[bool, float, int]
"""(has a state on any tier, the policy's score, id): what sorts first goes first, KV that serves nobody before all."""

WINDOW = 64  # states on the host that one choice looks at, least recently used first: the list can be long


def utilities(runtime: PolicyRuntime, nodes: Collection[UnifiedTreeNode]) -> dict[UnifiedTreeNode, Utility]:
    """The utility of each node, in one pass over the policy's scores."""
    rows = {node: row_of(node) for node in nodes if has_state(node) and row_of(node) >= 0}
    of_rows = np.fromiter(rows.values(), np.int64, len(rows))
    scores = runtime.eviction.scores(runtime.table, of_rows, runtime.tick).tolist() if rows else []
    found = {node: (has_state(node), 0.0, node.id) for node in nodes}
    found.update({node: (True, score, node.id) for node, score in zip(rows, scores, strict=True)})
    return found


def has_state(node: UnifiedTreeNode) -> bool:
    """Whether a recurrent state is at the node, on the device or on the host."""
    data = node.component_data[ComponentType.MAMBA]
    return data.value is not None or data.host_value is not None


def is_referenced(node: UnifiedTreeNode) -> bool:
    """Whether an open session refers to the state at the node."""
    return node.component_data[ComponentType.MAMBA].session_ref > 0


def bring_forward(runtime: PolicyRuntime, host_list: UnifiedLRUList) -> bool:
    """Put the state that should leave the host first where stock takes one from. False: none may leave.

    Those that open sessions refer to come last in the list, as stock has it, and stay behind the others.
    """
    nodes = list(islice(unlocked(host_list), WINDOW))
    if not nodes:
        return False
    oldest = nodes[0]
    nodes = [node for node in nodes if is_referenced(node) == is_referenced(oldest)]
    utility = utilities(runtime, nodes)
    chosen = min(nodes, key=utility.__getitem__)
    if chosen is not oldest:
        host_list.remove_node(chosen)
        host_list.insert_after(oldest, chosen)
    return True


def unlocked(host_list: UnifiedLRUList) -> Iterator[UnifiedTreeNode]:
    """The list's nodes that no transfer holds, least recently used first."""
    node = host_list.get_lru_no_host_lock()
    while node is not None:
        yield node
        node = host_list.get_prev_no_host_lock(node)
