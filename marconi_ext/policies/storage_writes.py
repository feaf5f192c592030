"""Which states are worth writing to a storage tier: the share of them that the policy values most."""

from __future__ import annotations

import math
from collections import deque

RECENT = 256  # states that one is compared with
FEW = 16  # before so many are known, everything is written


class StorageWrites:
    """Decides about states one by one, in the order in which they reach the host. Single-threaded.

    share: of the recent states, how many are to be written, in (0, 1]; 1 writes all. States of one score are written
    alike, so that more than the share are where many have the same.
    """

    def __init__(self, share: float) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share}")
        self.share = share
        self._recent: deque[float] = deque(maxlen=RECENT)

    def worth(self, score: float) -> bool:
        """Whether to write a state of this score. Remembers the score either way."""
        self._recent.append(score)
        if self.share == 1 or len(self._recent) < FEW:
            return True
        ranked = sorted(self._recent, reverse=True)
        return score >= ranked[math.ceil(self.share * len(ranked)) - 1]
