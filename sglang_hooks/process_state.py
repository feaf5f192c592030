"""The extension's state in one scheduler process: None until a hybrid model's cache is built with it.

Imports nothing at run time: every hook asks here, in processes that need nothing of it as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from marconi_ext.config import MarconiConfig

    from .observe.metrics import MetricsPublisher
    from .observe.split_advice import SplitAdvice
    from .observe.stats import CacheStats
    from .observe.tree_dump import TreeDumps
    from .operator.desk import Desk
    from .operator.memory import ServerMemory
    from .radix.cache import MarconiRadixCache
    from .radix.ledger import CheckpointLedger
    from .radix.twins import Twins
    from .recurrence.forward import ForwardCheckpoints
    from .recurrence.speculation import AcceptedRuns


@dataclass
class Live:
    """What the hooks share in a scheduler process.

    runs: None without speculative decoding
    metrics: None where this process exports none (no --enable-metrics, or a rank that SGLang leaves out)
    memory: None where nothing is to be remembered
    """

    config: MarconiConfig
    ledger: CheckpointLedger
    forward: ForwardCheckpoints
    cache: MarconiRadixCache
    stats: CacheStats
    tree_dumps: TreeDumps
    twins: Twins
    desk: Desk
    split: SplitAdvice
    runs: AcceptedRuns | None = None
    metrics: MetricsPublisher | None = None
    memory: ServerMemory | None = None


_live: Live | None = None


def live() -> Live | None:
    """The running extension, or None where SGLang serves as stock."""
    return _live


def go_live(state: Live) -> None:
    """Called once, by the cache factory."""
    global _live
    _live = state
