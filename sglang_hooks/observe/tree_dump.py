"""The radix tree as plain JSON, for a bug report: shape, states, locks; token ids only where they were asked for.

SGLang has no endpoint for this and takes no arguments on /server_info. So POST /set_internal_state with
{"server_args": {"marconi_tree": 1}} begins a dump (2: with token ids, sealed with a key that is sent along; see
`marconi_ext.watch.sealed_tokens`), and until the deadline, or until 0 is sent, /server_info carries one page of it; 3
asks for the next page. A page is as much as the scheduler describes in a few milliseconds. Between two pages the tree
may change: nodes that came meanwhile come last, and what was told of a node was true when its page was made.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from itertools import repeat, takewhile
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

from marconi_ext.policies.runtime import PolicyRuntime
from marconi_ext.policies.table.tree_rows import row_of
from marconi_ext.watch.sealed_tokens import KEY_ARGUMENTS, NEXT, OFF, SHAPE, TREE_ARGUMENT, WITH_TOKENS, Key

from ..policy import kind_name
from ..radix.tree_core import depth_of

if TYPE_CHECKING:
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

    from ..radix.cache import MarconiRadixCache

ARMED_S = 30.0  # a client that went away doesn't leave every poll with a page in it
PAGE_S = 0.002  # of describing; sending what was described takes about as long again
NODES_A_LOOK = 16  # between two looks at the clock
TOKENS_A_PIECE = 16_384


class TreeDumps:
    """What /server_info should carry of the tree now. expose_tokens: whether token ids may be asked for"""

    def __init__(self, *, expose_tokens: bool = False) -> None:
        self._expose_tokens = expose_tokens
        self._wanted: tuple[Key | None] | None = None  # a dump that is asked for and hasn't begun
        self._walk: TreeWalk | None = None
        self._armed_until_s = 0.0
        self._begun = 0

    def ask(self, asked: Mapping[str, float]) -> bool:
        """Begin, go on or end. Returns: whether the value is one that we know, and allowed."""
        wanted = asked[TREE_ARGUMENT]
        key = Key.of([asked.get(name) for name in KEY_ARGUMENTS])
        if wanted == NEXT:
            if self._is_over() or self._walk is None:
                return False
            self._walk.page = None
        elif wanted in (OFF, SHAPE):
            self._walk, self._wanted = None, (None,) if wanted == SHAPE else None
        elif wanted == WITH_TOKENS and self._expose_tokens and key is not None:
            self._walk, self._wanted = None, (key,)
        else:
            return False
        self._armed_until_s = time.monotonic() + ARMED_S
        return True

    def section(self, cache: MarconiRadixCache) -> dict[str, Any]:
        """{"tree": …} while armed, else {}. The same page until the next one is asked for."""
        if self._is_over():
            return {}
        if self._wanted is not None:
            self._begun += 1
            self._walk, self._wanted = TreeWalk(cache, self._begun, *self._wanted), None
        if self._walk is None:
            return {}
        return {"tree": self._walk.page or self._walk.turn()}

    def _is_over(self) -> bool:
        if time.monotonic() > self._armed_until_s:
            self._walk = self._wanted = None
        return self._walk is None and self._wanted is None


class TreeWalk:
    """One dump under way. number: of the dump; page: the one that was described last, None: it was taken"""

    def __init__(self, cache: MarconiRadixCache, number: int, key: Key | None = None) -> None:
        self._cache, self._key, self._number, self._pages = cache, key, number, 0
        self._newest = -1
        self._left: deque[tuple[UnifiedTreeNode, int]] = (
            deque()
        )  # a node, and from which of its tokens on; -1: all
        self.page: dict[str, Any] | None = None
        self._scores = scores_by_row(cache.mamba.runtime)
        self._find_new()

    def turn(self) -> dict[str, Any]:
        """Describe further nodes for `PAGE_S`, and at least one. `left`: what is still to come, 0 at the end."""
        until_s = time.perf_counter() + PAGE_S
        nodes: list[dict[str, Any]] = []
        pieces: list[dict[str, Any]] = []
        while self._left or self._find_new():
            for _ in range(min(NODES_A_LOOK, len(self._left))):
                node, begin = self._left.popleft()
                if not self._cache.tree_core.holds(node):
                    continue
                if begin < 0:
                    nodes.append(describe_node(self._cache, node, self._scores))
                    if self._key is not None and node.parent is not None:
                        self._left.appendleft((node, 0))
                else:
                    pieces.append(self._piece(node, begin))
                    break  # a piece may take as long as many nodes
            if time.perf_counter() >= until_s:
                break
        self._pages += 1
        self.page = {
            "dump": self._number,
            "page": self._pages,
            "left": len(self._left),
            "tick": self._cache.mamba.runtime.tick,
            "page_tokens": self._cache.page_size,
            "nodes": nodes,
        }
        if self._key is not None:
            self.page["tokens"] = pieces
        return self.page

    def _find_new(self) -> bool:
        """Put nodes that came since the last look at the end. Ids grow, and a tree's newest nodes are its last."""
        newest = self._newest
        nodes = reversed(self._cache.tree_core.nodes())
        # Without a call a node at the begin, when there are all of a tree's.
        found = list(nodes if newest < 0 else takewhile(lambda node: node.id > newest, nodes))
        if found:
            self._newest = found[0].id
        self._left.extend(zip(reversed(found), repeat(-1)))
        return bool(found)

    def _piece(self, node: UnifiedTreeNode, begin: int) -> dict[str, Any]:
        ids = node.key.raw_token_ids()[begin : begin + TOKENS_A_PIECE]
        if begin + len(ids) < len(node.key):
            self._left.appendleft((node, begin + len(ids)))
        place = f"{node.id}.{begin}"
        return {"id": node.id, "from": begin, "sealed": self._key.seal(ids, place) if self._key else ""}


def scores_by_row(runtime: PolicyRuntime) -> dict[int, float]:
    """What the policy thinks of each state that is held, in its own unit: the lowest goes first."""
    rows = runtime.table.live_rows()
    if not len(rows):
        return {}
    return dict(
        zip(rows.tolist(), runtime.eviction.scores(runtime.table, rows, runtime.tick).tolist(), strict=True)
    )


def describe_node(
    cache: MarconiRadixCache, node: UnifiedTreeNode, scores: dict[int, float]
) -> dict[str, Any]:
    """One node. kind, age_ticks (requests since it served), uses: of its record, which outlives the state;
    score: see `scores_by_row`, as the dump began; access: larger is more recent."""
    kv, mamba = node.component_data[ComponentType.FULL], node.component_data[ComponentType.MAMBA]
    row, runtime = row_of(node), cache.mamba.runtime
    return {
        "id": node.id,
        "parent": None if node.parent is None else node.parent.id,
        "depth_tokens": 0 if node.parent is None else depth_of(node),
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


def _place(data: Any) -> str | None:
    """Where a node's KV or state is; None: nowhere. The root has neither."""
    if data.value is not None:
        return "device"
    return None if data.host_value is None else "host"
