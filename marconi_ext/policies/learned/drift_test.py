"""Has the traffic changed? Does what was seen of late foretell which records are used better than all that was learned?

Two sets of hazards foretell, from one test to the next, *which* record a request uses, each in proportion to its
hazard: those learned over thousands of requests, and those of the last few alone. The log of the ratio of what happened
under both (nats) is summed up from where it was last nothing (a CUSUM test). Only which records are used counts: fewer
uses than usual, as in a burst of prompts that share nothing, are no reason to make room.

A test counts all records once, so it isn't made with each request, but sooner where something is suspicious: the
evidence so far, or a lead of LRU's.
"""

from __future__ import annotations

import numpy as np

from marconi_ext.policies.learned.gittins_index import GittinsIndex
from marconi_ext.policies.learned.hazards import Hazards

CHANGED_NATS = 10.0  # 20,000 times likelier: uses come in bursts, so that less happens by chance
SUSPICIOUS_NATS = 2.0
TEST_REQUESTS, SUSPICIOUS_REQUESTS = 16, 4  # from one test to the next
HALF_LIFE_REQUESTS = 16  # of what was seen of late


class ChangeTest:
    """Of one index, which has been told of all uses and exposure when `test` is called.

    from_tick: there is no evidence before; traffic from an empty cache changes by itself
    `lately`: what was seen of late; `since`: the tick from which on the evidence speaks
    """

    def __init__(self, index: GittinsIndex, from_tick: int = 0) -> None:
        self.from_tick = from_tick
        self.lately = Hazards(index.classes, index.prior, index.groups)
        self.since = 0
        self._index = index
        self._rate = self._foretold()
        self._seen = np.zeros((2, *index.uses.shape))  # the index's uses and exposure, counted already
        self._tested = 0
        self._evidence = 0.0  # nats

    def due(self, tick: int, suspicious: bool) -> bool:
        """Whether it is time to `test`. suspicious: for other reasons than the evidence so far"""
        suspicious = suspicious or self._evidence > SUSPICIOUS_NATS
        return tick % TEST_REQUESTS == 0 or (suspicious and tick - self._tested >= SUSPICIOUS_REQUESTS)

    def test(self, tick: int) -> bool:
        """Whether the traffic has changed. It was what it has been up to `since`."""
        index, lately = self._index, self.lately
        uses, exposure = index.uses - self._seen[0], index.exposure - self._seen[1]
        in_all = (exposure * index.rate).sum()
        if in_all > 0 and tick > self.from_tick:
            used = uses.nonzero()
            foretold = (exposure * self._rate).sum() / in_all
            likelier = np.log(self._rate[used] / (index.rate[used] * foretold))
            self._evidence = max(self._evidence + float((uses[used] * likelier).sum()), 0.0)
        decay = 0.5 ** ((tick - self._tested) / HALF_LIFE_REQUESTS)
        lately.uses = (lately.uses + uses) * decay
        lately.exposure = (lately.exposure + exposure) * decay
        self._rate, self._tested = self._foretold(), tick
        self._seen[:] = index.uses, index.exposure
        changed = self._evidence > CHANGED_NATS
        if changed:
            self._evidence = 0.0
        elif self._evidence == 0.0:
            self.since = tick
        return changed

    def mark(self) -> None:
        """The index is refreshed: what it foretells from is no evidence of how well it does."""
        self._seen[:] = self._index.uses, self._index.exposure

    def _foretold(self) -> np.ndarray:
        rates, of_class = self.lately.rates()
        return rates[of_class]
