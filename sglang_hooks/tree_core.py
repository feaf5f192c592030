"""SGLang's Python tree core with shorter ways through it, for the caches in which they lead to the same tree.

Stock walks a request's whole path at each match, insert, lock and unlock, and compares or copies its tokens at every
node on it. An edge is compared at once here; and as a running request locks its path, an insert and the lock that
moves with it begin at the node that is locked already. What a tree holds after each step is what stock's steps leave.
Source of the replaced behaviour: SGLang 0.5.23, mem_cache/unified_cache/unified_tree_core.py, components/full.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.base_prefix_cache import DecLockRefParams, InsertResult, MatchResult, TreeLock
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
    from sglang.srt.mem_cache.base_prefix_cache import InsertParams, MatchPrefixParams
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.radix_cache import RadixKey

NAME = "marconi"
_FULL, _MAMBA = ComponentType.FULL, ComponentType.MAMBA


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

    def _match_prefix_helper(self, key: RadixKey, params: MatchPrefixParams) -> MatchResult:
        if not self.plain:
            return super()._match_prefix_helper(key, params)
        tokens, end, page = key.token_ids, len(key), self.page_size
        child_key_at = tokens.__getitem__
        if page > 1 or key.extra_key is not None or key.cache_salt is not None:

            def child_key_at(offset: int) -> Any:
                return key.child_key_at(offset, page)

        node = best = self.root_node
        depth = best_depth = best_nodes = 0
        path: list[tuple[int, UnifiedTreeNode]] = []
        action = None
        while depth < end and action is None:
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
            path.append((depth, node))
            if node.component_data[_MAMBA].value is not None:
                best, best_depth, best_nodes = node, depth, len(path)
            if not whole:
                break
        if best_nodes:
            self.lru_lists[_MAMBA].reset_node_mru(best)
        now = get_and_increase_time_counter()
        for _, seen in path[:best_nodes]:
            seen.last_access_time = now
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

    def move_lock(self, lock: TreeLock, below: UnifiedTreeNode) -> TreeLock:
        """Trade a lock for one on a node at or below its node: KV is locked between the two, the state moves."""
        node = self.node_by_id(lock.node)
        receipt = DecLockRefParams(node_id=below.id)
        if node is below:
            return TreeLock(below.id, receipt)
        self._lock_kv(below, node)
        mamba = self.components_by_type[_MAMBA]
        mamba.acquire_component_lock(below, None)
        mamba.release_component_lock(node, lock.receipt)
        self.evictable_device_leaves.discard(below)
        return TreeLock(below.id, receipt)

    def lock_path(self, node: UnifiedTreeNode) -> None:
        """Lock the KV from a node up to the root."""
        self._lock_kv(node, self.root_node)
        self.evictable_device_leaves.discard(node)

    def unlock_path(self, node: UnifiedTreeNode) -> None:
        """Undo `lock_path`. Only its own node can be a leaf: those above have children on the way to it."""
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
        self._update_evictable_leaf_sets(node)

    def _lock_kv(self, node: UnifiedTreeNode, until: UnifiedTreeNode) -> None:
        tokens = 0
        while node is not until:
            data = node.component_data[_FULL]
            if data.lock_ref == 0:
                tokens += len(node.key.token_ids)
            data.lock_ref += 1
            node = node.parent
        self.component_evictable_size_[_FULL] -= tokens
        self.component_protected_size_[_FULL] += tokens

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
    """Tokens from the root to the node's end."""
    tokens = 0
    while node is not None:
        tokens += len(node.key.token_ids)
        node = node.parent
    return tokens


def register() -> str:
    """Make the core known to SGLang; returns the name to ask for it by."""
    if get_tree_core_factory(NAME) is None:
        register_tree_core_backend(NAME, MarconiTreeCore)
    return NAME
