"""The extension's state in one scheduler process: None until a hybrid model's cache is built with it.

For what stands above the cache; what stands below asks `process_parts` for the one part that it needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .process_parts import running, start

if TYPE_CHECKING:
    from marconi_ext.config import MarconiConfig

    from .ledger import CheckpointLedger
    from .observe.metrics import MetricsPublisher
    from .observe.split_advice import SplitAdvice
    from .observe.tree_dump import TreeDumps
    from .operator.desk import Desk
    from .operator.memory import ServerMemory
    from .radix.cache import MarconiRadixCache
    from .radix.twins import Twins
    from .recurrence.forward import ForwardCheckpoints
    from .recurrence.speculation import AcceptedRuns
    from .stats import CacheStats


@dataclass
class Live:
    """What the hooks share in a scheduler process.

    split: None where KV and states share one buffer, which needs no split
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
    split: SplitAdvice | None
    runs: AcceptedRuns | None = None
    metrics: MetricsPublisher | None = None
    memory: ServerMemory | None = None


def live() -> Live | None:
    """The running extension, or None where SGLang serves as stock."""
    return running(Live)


def go_live(state: Live) -> None:
    """Called once, when everything is put together."""
    start(state, state.forward)
    if state.runs is not None:
        start(state.runs)
