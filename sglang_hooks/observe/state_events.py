"""Events about recurrent states, beside SGLang's events about KV: docs/events.md has the formats.

`StateEvents` sends StateStored and StateRemoved on a socket of their own, with SGLang's publisher (sequence numbers,
replay, one port a data-parallel rank). `ResumableRecorder` takes the place of SGLang's recorder: it holds a node's
BlockStored back until a state makes its KV reusable, and takes the blocks back when none does.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

from sglang.srt.disaggregation.kv_events import (
    AllBlocksCleared,
    EventBatch,
    EventPublisherFactory,
    KVCacheEvent,
    StorageMedium,
    is_kv_publisher_rank,
    namespaced_block_hash,
    select_kv_publisher_dp_rank,
)
from sglang.srt.mem_cache.events import KVCacheEventRecorder
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.utils import get_hash_str, hash_str_to_int64
from sglang.srt.runtime_context import get_parallel

from marconi_ext.config import MarconiConfig
from marconi_ext.policies.table.tree_rows import row_of

from ..policy import kind_name
from ..radix.tree_core import depth_of
from .resumable import Resumable

if TYPE_CHECKING:
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

    from ..radix.cache import MarconiRadixCache

_MAMBA = ComponentType.MAMBA


class StateStored(KVCacheEvent):
    """A request whose prompt begins with this block's chain can be resumed after `depth_tokens` tokens."""

    block_hash: int
    depth_tokens: int
    kind: str
    medium: str


class StateRemoved(KVCacheEvent):
    """The state at this block's end has left `medium`; its KV may stay."""

    block_hash: int
    medium: str


class StateEventBatch(EventBatch):
    """What a message carries, as SGLang's KVEventBatch: [time, events, data-parallel rank]."""

    events: list[StateStored | StateRemoved | AllBlocksCleared]


class StateEvents:
    """Compares a node's state with what was last said of it: `sync` may be called whenever it may have changed.

    publisher: anything with `publish(batch)`
    """

    def __init__(self, cache: MarconiRadixCache, publisher: Any) -> None:
        self._cache = cache
        self._publisher = publisher
        self._said: dict[int, tuple[int, frozenset[str]]] = {}  # node id -> block hash, media
        self._queue: list[Any] = []

    def sync(self, node: UnifiedTreeNode) -> None:
        """Say what changed of the state at `node`."""
        media = media_of(node)
        block_hash, said = self._said.get(node.id, (0, frozenset()))
        if media == said:
            return
        if not said:
            block_hash = last_block_hash(self._cache.tree_core.kv_events, node)
        for medium in sorted(said - media):
            self._queue.append(StateRemoved(block_hash, medium))
        if media - said:
            row, table = row_of(node), self._cache.mamba.runtime.table
            kind = kind_name(table.kind.item(row)) if row >= 0 else "unknown"
            for medium in sorted(media - said):
                self._queue.append(StateStored(block_hash, depth_of(node), kind, medium))
        if media:
            self._said[node.id] = (block_hash, media)
        else:
            del self._said[node.id]

    def split(self, upper: UnifiedTreeNode, lower: UnifiedTreeNode) -> None:
        """Nothing to say: the state keeps its place, and its block its hash."""

    def cleared(self) -> None:
        """The tree was reset."""
        self._said.clear()
        self._queue.append(AllBlocksCleared())

    def flush(self) -> None:
        """Send what has gathered."""
        if self._queue:
            events, self._queue = self._queue, []
            self._publisher.publish(StateEventBatch(ts=time.time(), events=events))

    def said(self) -> dict[int, frozenset[str]]:
        """Where a state was said to be, by the id of its node."""
        return {node: media for node, (_, media) in self._said.items()}


class ResumableRecorder(KVCacheEventRecorder):
    """SGLang's recorder, for KV that a state makes reusable. Queue and events are SGLang's own.

    A block's medium is where its KV is; the state may be in any.
    """

    def __init__(self, stock: KVCacheEventRecorder) -> None:
        super().__init__(
            enabled=stock.enabled,
            page_size=stock.page_size,
            dynamo_format=stock.dynamo_format,
            lora_names=stock.lora_names,
        )
        self.resumable: Resumable[UnifiedTreeNode] = Resumable(lambda node: node.parent)
        self._kv: dict[UnifiedTreeNode, set[StorageMedium]] = {}

    def record_store(
        self, node: Any, medium: StorageMedium | None = None, *, session_id: str | None = None
    ) -> None:
        """KV has come to a node."""
        medium = medium or StorageMedium.GPU
        media = self._kv.setdefault(node, set())
        if medium not in media:
            media.add(medium)
            if node in self.resumable:
                super().record_store(node, medium, session_id=session_id)

    def record_remove(self, node: Any, medium: StorageMedium | None = None) -> None:
        """KV leaves a node."""
        medium = medium or StorageMedium.GPU
        media = self._kv.get(node, set())
        if medium in media:
            media.discard(medium)
            if node in self.resumable:
                super().record_remove(node, medium)
        if not media:
            self._kv.pop(node, None)

    def sync(self, node: UnifiedTreeNode) -> None:
        """The state at `node` may have changed."""
        if media_of(node):
            for changed in self.resumable.entered(node):
                for medium in sorted(self._kv.get(changed, ())):
                    super().record_store(changed, medium)
        else:
            for changed in self.resumable.gone(node):
                for medium in sorted(self._kv.get(changed, ())):
                    super().record_remove(changed, medium)

    def split(self, upper: UnifiedTreeNode, lower: UnifiedTreeNode) -> None:
        """`upper` has a part of the KV that was `lower`'s."""
        self.resumable.split(upper, lower)
        if lower in self._kv:
            self._kv[upper] = set(self._kv[lower])

    def record_all_cleared(self) -> None:
        """The tree was reset."""
        self.resumable.clear()
        self._kv.clear()
        super().record_all_cleared()

    def cleared(self) -> None:
        """Said by `record_all_cleared`, which SGLang calls itself."""

    def flush(self) -> None:
        """SGLang sends the queue."""


def media_of(node: UnifiedTreeNode) -> frozenset[str]:
    """Where the node's state is: GPU, CPU_PINNED, both or nowhere."""
    data = node.component_data[_MAMBA]
    found = []
    if data.value is not None:
        found.append(StorageMedium.GPU.value)
    if data.host_value is not None:
        found.append(StorageMedium.CPU.value)
    return frozenset(found)


def last_block_hash(recorder: KVCacheEventRecorder, node: UnifiedTreeNode) -> int:
    """The hash of the block that ends where `node` does, as BlockStored carries it. Hashes the path where needed."""
    unknown, above = [], node
    while above.parent is not None and above.hash_value is None and above.event_hash_value is None:
        unknown.append(above)
        above = above.parent
    values = None
    for below in reversed(unknown):
        values = recorder._node_event_hash_values(below)
    if values is None:
        values = recorder._node_event_hash_values(node)
    return namespaced_block_hash(hash_str_to_int64(values[-1]), namespace_seed=recorder._namespace_seed(node))


def start(
    cache: MarconiRadixCache, config: MarconiConfig, kv_events_config: str | None
) -> StateEvents | ResumableRecorder | None:
    """What `--marconi-events` asks for, on ranks that SGLang publishes from; else None."""
    mode: Literal["none", "states", "resumable"] = config.events
    if mode == "none":
        return None
    # SGLang compiles its hash at the first call, for up to half a minute, in which its own warm-up would give up.
    get_hash_str([0])
    if mode == "states" and is_kv_publisher_rank(config.events_config):
        parallel = get_parallel()
        rank = select_kv_publisher_dp_rank(parallel.attn_dp_size, parallel.attn_dp_rank, parallel.dp_rank)
        return StateEvents(cache, EventPublisherFactory.create(config.events_config, rank))
    if mode == "resumable" and is_kv_publisher_rank(kv_events_config):
        cache.tree_core.kv_events = ResumableRecorder(cache.tree_core.kv_events)
        return cache.tree_core.kv_events
    return None
