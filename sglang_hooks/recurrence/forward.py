"""Carry a batch's checkpoints from the scheduler into the recurrent layers of its forward pass.

The scheduler arms them just before it runs a batch; the family's saver writes the states while the layers run; then
the checkpoints that every layer has saved are marked as written. ForwardBatch objects are rebuilt on the way
(attributes that aren't fields vanish), so the checkpoints travel beside them, not on them: one forward at a time runs
in a scheduler process.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

from ..process_parts import running
from .interface import ArmedCheckpoints, StateSaver

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch

    from ..ledger import CheckpointLedger, PendingCheckpoint
    from ..stats import CacheStats

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=StateSaver)


class ForwardCheckpoints:
    """The checkpoints of the forward pass that is being launched; empty between forwards.

    backend: SGLang's backend of the target model's recurrent layers; the only one that states are saved from
    layers: recurrent layers of this process, for the log
    """

    def __init__(
        self,
        ledger: CheckpointLedger,
        saver: StateSaver,
        stats: CacheStats,
        backend: object,
        layers: int = 0,
    ) -> None:
        self.saver = saver
        self.backend, self.layers = backend, layers
        self._ledger = ledger
        self._stats = stats
        self._checkpoints: list[PendingCheckpoint] = []

    def arm(self, batch: ScheduleBatch) -> None:
        """Collect what the requests of an extend batch want saved; rows and lengths are the batch's own."""
        self._reset()
        if not batch.forward_mode.is_extend():
            return
        armed = ArmedCheckpoints()
        start = 0
        for row, (req, prefix_tokens, extend_tokens) in enumerate(
            zip(batch.reqs, batch.prefix_lens, batch.extend_lens, strict=True)
        ):
            for checkpoint in self._ledger.unwritten(req):
                offset = checkpoint.position_tokens - prefix_tokens
                if 0 < offset <= extend_tokens:
                    self._checkpoints.append(checkpoint)
                    armed.add(row, offset, start + offset, checkpoint.slot)
            start += extend_tokens
        self.saver.begin(armed)

    def disarm(self) -> None:
        """Mark what every layer has saved; what some layer missed stays unwritten and is never published."""
        if self._checkpoints:
            missed = self.saver.missed()
            if missed is None:
                for checkpoint in self._checkpoints:
                    checkpoint.written = True
            else:
                for _ in self._checkpoints:
                    self._stats.planning_failed("not-written")
                logger.error("marconi-ext: %d checkpoints dropped: %s", len(self._checkpoints), missed)
        self._reset()

    def _reset(self) -> None:
        self._checkpoints = []
        self.saver.reset()


def live_saver(kind: type[S], backend: object = None) -> S | None:
    """The running extension's saver, if it is of this class and saves what runs on `backend` (None: not known here).

    None: a hook lets a stock model pass, another family's, or a draft's layers: while the target's plan is armed they
    run in the same process, on a backend object of their own.
    """
    forward = running(ForwardCheckpoints)
    if forward is None or not (backend is None or backend is forward.backend):
        return None
    return forward.saver if isinstance(forward.saver, kind) else None
