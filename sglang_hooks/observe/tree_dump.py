"""The radix tree as plain JSON, for a bug report: shape, states, locks; token ids only where they were asked for.

SGLang has no endpoint for this and takes no arguments on /server_info, so a dump is asked for in two steps: POST
/set_internal_state with {"server_args": {"marconi_tree": 1}} (2: with token ids) arms it, and until the deadline, or
until 0 is sent, each /server_info carries the tree as it then is.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

from marconi_ext.policies.runtime import PolicyRuntime
from marconi_ext.policies.table.tree_rows import row_of

from ..policy import kind_name

if TYPE_CHECKING:
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

    from ..radix.cache import MarconiRadixCache

ARGUMENT = "marconi_tree"
OFF, SHAPE, WITH_TOKENS = 0, 1, 2
ARMED_S = 30.0  # a client that went away doesn't leave every poll with a tree in it


class TreeDumps:
    """Whether /server_info should carry the tree now. expose_tokens: whether it may have token ids in it"""

    def __init__(self, *, expose_tokens: bool = False) -> None:
        self._expose_tokens = expose_tokens
        self._wanted = OFF
        self._deadline_s = 0.0

    def ask(self, wanted: float) -> bool:
        """Arm or end. Returns: whether the value is one that we know, and allowed."""
        if wanted == WITH_TOKENS and not self._expose_tokens:
            return False
        if wanted not in (OFF, SHAPE, WITH_TOKENS):
            return False
        self._wanted = int(wanted)
        self._deadline_s = time.monotonic() + ARMED_S
        return True

    def section(self, cache: MarconiRadixCache) -> dict[str, Any]:
        """{"tree": …} while armed, else {}."""
        if self._wanted == OFF or time.monotonic() > self._deadline_s:
            return {}
        return {"tree": dump_tree(cache, with_tokens=self._wanted == WITH_TOKENS)}


def dump_tree(cache: MarconiRadixCache, *, with_tokens: bool = False) -> dict[str, Any]:
    """All nodes, parents before children. Stops the scheduler while it walks: about 10 µs a node without tokens."""
    root = cache.tree_core.root_node
    scores = scores_by_row(cache.mamba.runtime)
    nodes = []
    pending = [(root, 0)]
    while pending:
        node, depth_tokens = pending.pop()
        nodes.append(_describe(cache, node, depth_tokens, scores, with_tokens))
        for child in node.children.values():
            pending.append((child, depth_tokens + len(child.key)))
    return {"tick": cache.mamba.runtime.tick, "page_tokens": cache.page_size, "nodes": nodes}


def scores_by_row(runtime: PolicyRuntime) -> dict[int, float]:
    """What the policy thinks of each state that is held, in its own unit: the lowest goes first."""
    rows = runtime.table.live_rows()
    if not len(rows):
        return {}
    return dict(
        zip(rows.tolist(), runtime.eviction.scores(runtime.table, rows, runtime.tick).tolist(), strict=True)
    )


def _describe(
    cache: MarconiRadixCache,
    node: UnifiedTreeNode,
    depth_tokens: int,
    scores: dict[int, float],
    with_tokens: bool,
) -> dict[str, Any]:
    """One node. kind, age_ticks (requests since it served), uses: of its record, which outlives the state;
    score: see `scores_by_row`; access: larger is more recent."""
    kv, mamba = node.component_data[ComponentType.FULL], node.component_data[ComponentType.MAMBA]
    row, runtime = row_of(node), cache.mamba.runtime
    described = {
        "id": node.id,
        "parent": None if node.parent is None else node.parent.id,
        "depth_tokens": depth_tokens,
        "edge_tokens": 0 if node.parent is None else len(node.key),
        "kv": _place(kv),
        "state": _place(mamba),
        "kind": None if row < 0 else kind_name(runtime.table.kind.item(row)),
        "age_ticks": None if row < 0 else int(runtime.tick - runtime.table.last_use[row]),
        "uses": None if row < 0 else int(runtime.table.uses[row]),
        "score": scores.get(row),
        "access": node.last_access_time,
        "kv_locks": kv.lock_ref,
        "state_locks": mamba.lock_ref,
    }
    if with_tokens and node.parent is not None:
        described["tokens"] = list(node.key.raw_token_ids())
    return described


def _place(data: Any) -> str | None:
    """Where a node's KV or state is; None: nowhere. The root has neither."""
    if data.value is not None:
        return "device"
    return None if data.host_value is None else "host"
