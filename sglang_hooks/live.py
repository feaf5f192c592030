"""The extension's state in one scheduler process: None until a hybrid model's cache is built with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from marconi_ext.config import MarconiConfig

from .forward import ForwardCheckpoints
from .ledger import CheckpointLedger
from .stats import CacheStats
from .tree_dump import TreeDumps

if TYPE_CHECKING:
    from .cache import MarconiRadixCache
    from .metrics import MetricsPublisher


@dataclass
class Live:
    """What the hooks share in a scheduler process.

    metrics: None where this process exports none (no --enable-metrics, or a rank that SGLang leaves out)
    """

    config: MarconiConfig
    ledger: CheckpointLedger
    forward: ForwardCheckpoints
    cache: MarconiRadixCache
    stats: CacheStats = field(default_factory=CacheStats)
    metrics: MetricsPublisher | None = None
    tree_dumps: TreeDumps = field(default_factory=TreeDumps)


_live: Live | None = None


def live() -> Live | None:
    """The running extension, or None where SGLang serves as stock."""
    return _live


def go_live(state: Live) -> None:
    """Called once, by the cache factory."""
    global _live
    _live = state
