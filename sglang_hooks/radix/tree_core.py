"""SGLang's Python tree core with shorter ways through it, for the caches in which they lead to the same tree.

Stock walks a request's whole path at each match, insert, lock and unlock, and compares or copies its tokens at every
node on it. An edge is compared at once here; and as a running request locks its path, an insert and the lock that
moves with it begin at the node that is locked already. A new leaf, a state or a leaf that goes, and a lock are one
step each here, without what they would mean to other components and tiers. What a tree holds after each step is what
stock's steps leave.
Source of the replaced behaviour: SGLang 0.5.23, mem_cache/unified_cache/unified_tree_core.py, components/full.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.disaggregation.kv_events import StorageMedium
from sglang.srt.mem_cache.base_prefix_cache import (
    DecLockRefParams,
    DecLockRefResult,
    IncLockRefResult,
    InsertResult,
    MatchResult,
    TreeLock,
)
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_cache.components.base import get_and_increase_time_counter
from sglang.srt.mem_cache.unified_cache.tree_core_registry import (
    get_tree_core_factory,
    register_tree_core_backend,
)
from sglang.srt.mem_cache.unified_cache.unified_tree_core import (
    UnifiedTreeCore,
    UnifiedTreeNode,
    _InsertPhase,
    _InsertWalkState,
)

if TYPE_CHECKING:
    from collections.abc import Sequence, ValuesView

    from sglang.srt.mem_cache.base_prefix_cache import InsertParams, MatchPrefixParams
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.radix_cache import RadixKey
    from sglang.srt.mem_cache.unified_cache.unified_tree_core_interface import NodeId

NAME = "marconi"
_FULL, _MAMBA = ComponentType.FULL, ComponentType.MAMBA
KV_ALONE = (_MAMBA,)  # what a lock skips that keeps KV and no state


class MarconiTreeCore(UnifiedTreeCore):
    """insert_from: (node, its depth in tokens) - where the next insert begins, whose key and value lack what lies
    above; None: at the root"""

    insert_from: tuple[UnifiedTreeNode, int] | None = None

    def __init__(self, params: CacheInitParams, components: dict[ComponentType, Any]) -> None:
        self._could_be_plain = (
            set(components) == {_FULL, _MAMBA}
            and params.eviction_policy.lower() == "lru"
            and not params.enable_session_radix_cache
        )
        super().__init__(params, components)

    @property
    def plain(self) -> bool:
        """Device memory alone, and no order of eviction but ours: a walk has no side effects worth keeping."""
        return self._could_be_plain and not (self.enable_hicache or self.enable_external_cache_linker)

    def nodes(self) -> ValuesView[UnifiedTreeNode]:
        """All nodes with the root, in the order in which they were made."""
        return self._node_arena.values()

    def holds(self, node: UnifiedTreeNode) -> bool:
        """Whether the node is still in the tree."""
        return self._node_arena.get(node.id) is node

    def _match_prefix_helper(self, key: RadixKey, params: MatchPrefixParams) -> MatchResult:
        if not self.plain:
            return super()._match_prefix_helper(key, params)
        tokens, end, page = key.token_ids, len(key), self.page_size
        child_key_at = tokens.__getitem__
        if page > 1 or key.extra_key is not None or key.cache_salt is not None:

            def child_key_at(offset: int) -> Any:
                return key.child_key_at(offset, page)

        node = best = self.root_node
        depth = best_depth = 0
        path: list[tuple[int, UnifiedTreeNode]] = []
        action, now = None, get_and_increase_time_counter()
        while depth < end:
            child = node.children.get(child_key_at(depth))
            if child is None:
                break
            edge = child.key.token_ids
            below = depth + len(edge)
            whole = below <= end and edge == tokens[depth:below]
            if not whole:
                matched = child.key.match_at(key, depth, page_size=page)
                child, action = self._split_node(child.key, child, matched)
                below = depth + matched
            node, depth = child, below
            node.last_access_time = now
            path.append((depth, node))
            if node.component_data[_MAMBA].value is not None:
                best, best_depth = node, depth
            if not whole:
                break
        if best_depth:
            self.lru_lists[_MAMBA].reset_node_mru(best)
        self.components_by_type[_MAMBA].matched(params.req, path)
        return MatchResult(
            device_prefix_len=best_depth,
            last_device_node=best.id,
            last_host_node=best.id,
            best_match_node=best.id,
            full_kv_hit_length=depth,
            cache_actions=[] if action is None else [action],
            last_visited_node_id=node.id if path else None,
        )

    def begin_insert(self, params: InsertParams) -> Any:
        start, self.insert_from = self.insert_from, None
        if start is None:
            return super().begin_insert(params)
        node, depth = start
        self._ongoing_insert_walk_state = _InsertWalkState(
            phase=_InsertPhase.WALK,
            node=node,
            key=params.key,
            value=params.value,
            params=params,
            priority=params.priority or 0,
            result=InsertResult(prefix_len=depth),
            total_prefix_length=depth,
        )
        return self._advance_insert()

    # ---- steps of a plain tree ----

    def add_leaf(self, parent: UnifiedTreeNode, params: InsertParams) -> UnifiedTreeNode:
        """A leaf below `parent`, none of whose children begins like the key. It keeps the value, not a copy."""
        key = params.key
        leaf = self._new_node(priority=params.priority)
        leaf.parent, leaf.key = parent, key
        leaf.component_data[_FULL].value = params.value
        parent.children[key.child_key(self.page_size)] = leaf
        self.component_evictable_size_[_FULL] += len(key.token_ids)
        self._update_evictable_leaf_sets(leaf)
        self.evictable_device_leaves.discard(parent)
        self.kv_events.record_store(leaf, session_id=params.session_id)
        return leaf

    def take_leaf(self, leaf: UnifiedTreeNode) -> torch.Tensor:
        """The leaf leaves the tree, its state has left it already. Returns its KV indices, the caller's to free."""
        self.kv_events.record_remove(leaf, medium=StorageMedium.GPU)
        self.component_evictable_size_[_FULL] -= len(leaf.key.token_ids)
        self.evictable_device_leaves.discard(leaf)
        parent = leaf.parent
        del parent.children[leaf.key.child_key(self.page_size)]
        self._unregister_node(leaf)
        self._update_evictable_leaf_sets(parent)
        return leaf.component_data[_FULL].value

    def take_state(self, node: UnifiedTreeNode) -> torch.Tensor:
        """The node's state, which nobody locks, leaves the tree. Returns its slot, the caller's to free."""
        data = node.component_data[_MAMBA]
        slot, data.value = data.value, None
        self.lru_lists[_MAMBA].remove_node(node)
        self.component_evictable_size_[_MAMBA] -= 1
        return slot

    def inc_lock_ref(
        self, node_id: NodeId, skip_lock_components: Sequence[ComponentType] = ()
    ) -> IncLockRefResult:
        if skip_lock_components or not self.plain:
            return super().inc_lock_ref(node_id, skip_lock_components)
        node = self.node_by_id(node_id)
        self._lock_kv(node, self.root_node)
        self._lock_state(node)
        return IncLockRefResult(node_id=node_id)

    def dec_lock_ref(self, node_id: NodeId, params: DecLockRefParams, skip_swa: bool = False) -> Any:
        skipped = params.skipped_lock_components
        if skipped not in ((), KV_ALONE) or not self.plain:
            return super().dec_lock_ref(node_id, params, skip_swa)
        node = self.node_by_id(node_id)
        self._assert_receipt_anchor(node, params)
        self._unlock_kv(node)
        if not skipped:
            self._release_state(node)
        self._update_evictable_leaf_sets(node)
        return DecLockRefResult()

    def move_lock(self, lock: TreeLock, below: UnifiedTreeNode) -> TreeLock:
        """Trade a lock for one of KV alone, on a node at or below its node: no state is locked any more."""
        node = self.node_by_id(lock.node)
        self._lock_kv(below, node)
        if not lock.receipt.skipped_lock_components:
            self._release_state(node)
        return TreeLock(below.id, DecLockRefParams(node_id=below.id, skipped_lock_components=KV_ALONE))

    def _unlock_kv(self, node: UnifiedTreeNode) -> None:
        """Only the path's own end can be a leaf: those above have children on the way to it."""
        tokens, cursor, root = 0, node, self.root_node
        while cursor is not root:
            data = cursor.component_data[_FULL]
            assert data.lock_ref > 0, f"node {cursor.id} is not locked"
            data.lock_ref -= 1
            if data.lock_ref == 0:
                tokens += len(cursor.key.token_ids)
            cursor = cursor.parent
        self.component_evictable_size_[_FULL] += tokens
        self.component_protected_size_[_FULL] -= tokens

    def _lock_kv(self, node: UnifiedTreeNode, until: UnifiedTreeNode) -> None:
        tokens = 0
        self.evictable_device_leaves.discard(node)
        while node is not until:
            data = node.component_data[_FULL]
            if data.lock_ref == 0:
                tokens += len(node.key.token_ids)
            data.lock_ref += 1
            node = node.parent
        self.component_evictable_size_[_FULL] -= tokens
        self.component_protected_size_[_FULL] += tokens

    def _lock_state(self, node: UnifiedTreeNode) -> None:
        if node is not self.root_node:
            self._count_state_lock(node, 1)

    def _release_state(self, node: UnifiedTreeNode) -> None:
        if node is not self.root_node:
            self._count_state_lock(node, -1)

    def _count_state_lock(self, node: UnifiedTreeNode, more: int) -> None:
        data = node.component_data[_MAMBA]
        before, data.lock_ref = data.lock_ref, data.lock_ref + more
        assert data.lock_ref >= 0, f"the state at node {node.id} is not locked"
        if data.value is not None and 0 in (before, data.lock_ref):
            self.component_evictable_size_[_MAMBA] -= more
            self.component_protected_size_[_MAMBA] += more
        self.components_by_type[_MAMBA].held.locks_changed(node)

    def _update_evictable_leaf_sets(self, node: UnifiedTreeNode) -> None:
        if not self.plain:
            super()._update_evictable_leaf_sets(node)
            return
        data = node.component_data
        if node.children or node is self.root_node or data[_FULL].lock_ref or data[_MAMBA].lock_ref:
            self.evictable_device_leaves.discard(node)
        elif data[_FULL].value is not None:
            self.evictable_device_leaves.add(node)
        else:
            self.evictable_device_leaves.discard(node)


def depth_of(node: UnifiedTreeNode) -> int:
    """Tokens from the root to the node's end; kept at the node, whose end never moves."""
    unknown, above = [], node
    while above is not None and getattr(above, "depth_tokens", None) is None:
        unknown.append(above)
        above = above.parent
    tokens = 0 if above is None else above.depth_tokens
    for below in reversed(unknown):
        tokens = below.depth_tokens = tokens + len(below.key.token_ids)
    return tokens


def register() -> str:
    """Make the core known to SGLang; returns the name to ask for it by."""
    if get_tree_core_factory(NAME) is None:
        register_tree_core_backend(NAME, MarconiTreeCore)
    return NAME
