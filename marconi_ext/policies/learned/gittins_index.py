"""A learned index of reuse: by class of checkpoint and age, how soon a state is used and what holding it costs.

Uses and exposure (`hazards.py`) decay with a half-life. From the hazards, the *index* is the largest ratio, over
horizons, of the chance of a use before the horizon to the slot-steps held until then: a Gittins index. A plain
hazard would undervalue a state used a moment ago, whose next use is near but not due yet.

Traffic changes. Where a class's uses since the last refresh differ from those expected by far more than they usually
do (by chance, or because they come in bursts), what it had seen before counts little from then on.
"""

from __future__ import annotations

import numpy as np

from marconi_ext.policies.learned.hazards import BUCKET_OF, BUCKETS, WIDTHS, Hazards, bucket_of_age

_UPPER_TRIANGLE = np.triu(np.ones((BUCKETS, BUCKETS)))  # [from, to], to >= from
WRONG_DEVIATIONS = 3.0  # usual deviations by which a class's uses must differ from those expected
DOUBT_REQUESTS = 16  # since the last refresh: fewer tell little, and are asked about when little was seen
SPREAD_KEPT = 0.9  # of a class's usual squared deviation, from one refresh to the next
KEPT_WHEN_WRONG = 1 / 8  # of what a class had seen, when it turns out wrong
CHANGED = 0.02  # relative change of a hazard, below which its index isn't computed again


class GittinsIndex(Hazards):
    """`value` is the index and `rate` the hazard of each class and bucket, as of the last `refresh`."""

    def __init__(
        self,
        classes: int,
        half_life_requests: float = 4000.0,
        prior: tuple[float, ...] | np.ndarray | None = None,
        groups: np.ndarray | None = None,
    ) -> None:
        super().__init__(classes, prior, groups)
        self.half_life_requests = half_life_requests
        self.value = np.zeros((classes, BUCKETS))
        self.rate = np.zeros((classes, BUCKETS))
        self._rate_of_value = np.full((classes, BUCKETS), -1.0)  # those that `value` was computed from
        self._before = np.zeros((2, classes, BUCKETS))  # uses and exposure at the last refresh
        self._spread = np.ones(classes)  # usual squared deviation of uses, in those of chance
        self._scratch = np.empty(
            (3, classes + len(self._firsts), BUCKETS, BUCKETS)
        )  # of `refresh`: fresh memory took longer than it
        self.refresh(0)

    def at(self, labels: np.ndarray, ages: np.ndarray) -> np.ndarray:
        """The index of records of these classes and ages (integers, >= 0)."""
        return self.value.take(labels * BUCKETS + BUCKET_OF.take(ages, mode="clip"))

    def at_one(self, label: int, age: int) -> float:
        """As `at`, for one record."""
        return self.value.item(label, bucket_of_age(age))

    def begin_from(self, seen: Hazards) -> None:
        """Forget everything but this."""
        self.uses[:], self.exposure[:] = seen.uses, seen.exposure
        self._before[:] = self.uses, self.exposure

    def refresh(self, elapsed_requests: int) -> None:
        """Decay, and recompute the index."""
        if self.prior is not None and elapsed_requests >= DOUBT_REQUESTS:
            self._doubt()
        decay = 0.5 ** (elapsed_requests / self.half_life_requests)
        self.uses *= decay
        self.exposure *= decay
        self._before[:] = self.uses, self.exposure
        rates, of_class = self.rates()
        self.rate = rates[of_class]
        tolerance = 0.0 if self.prior is None else CHANGED
        off = np.abs(self.rate - self._rate_of_value) > tolerance * self._rate_of_value
        changed = np.flatnonzero(off.any(axis=1))
        rows, at = np.unique(of_class[changed], return_inverse=True)
        self.value[changed] = self._indices(rates[rows])[at]
        self._rate_of_value[changed] = self.rate[changed]

    def _doubt(self) -> None:
        """Believe less of what a class had seen before, where its uses since then are none that this foretold."""
        uses, exposure = self.uses - self._before[0], self.exposure - self._before[1]
        expected = (exposure * self.rate).sum(1)
        squared = (uses.sum(1) - expected) ** 2 / np.maximum(expected, 1.0)
        limit = WRONG_DEVIATIONS**2 * self._spread
        wrong = np.flatnonzero(squared > limit)
        lately = np.minimum(squared, 2 * limit)  # one surprise makes not all that follow usual
        self._spread = np.maximum(SPREAD_KEPT * self._spread + (1 - SPREAD_KEPT) * lately, 1.0)
        if len(wrong):
            self.uses[wrong] = uses[wrong] + KEPT_WHEN_WRONG * self._before[0, wrong]
            self.exposure[wrong] = exposure[wrong] + KEPT_WHEN_WRONG * self._before[1, wrong]

    def _indices(self, rate: np.ndarray) -> np.ndarray:
        """The index of ages with these hazards, row by row."""
        hazard = np.minimum(rate, 20.0) * WIDTHS
        held = np.where(rate > 1e-12, -np.expm1(-hazard) / np.maximum(rate, 1e-12), WIDTHS)
        before = np.cumsum(hazard, axis=1) - hazard  # up to a bucket's start
        # [row, from, to]: chance to reach bucket `to` unused, and the slot-steps held up to its end
        gap, reached, cost = self._scratch[:, : len(rate)]
        np.maximum(before[:, None, :] - before[:, :, None], 0.0, out=gap)
        np.exp(np.negative(gap, out=reached), out=reached)
        reached *= _UPPER_TRIANGLE
        reached *= held[:, None, :]
        np.maximum(reached.cumsum(axis=2, out=cost), 1e-300, out=cost)
        gap += hazard[:, None, :]
        used = np.negative(np.expm1(np.negative(gap, out=gap), out=gap), out=gap)
        used *= _UPPER_TRIANGLE
        used /= cost
        return used.max(axis=2)
