"""A learned index of reuse: by class of checkpoint and age, how soon a state is used and what holding it costs.

For each class and age bucket (half octaves of requests) uses and exposure (requests during which a record of
the class had that age) decay with a half-life. From the hazards, the *index* is the largest ratio, over
horizons, of the chance of a use before the horizon to the slot-steps held until then: a Gittins index. A plain
hazard would undervalue a state used a moment ago, whose next use is near but not due yet.

Where little has been seen, a bucket leans on its class, and a class on what is expected of it (`prior`, relative
to a tail): hazard = pooled hazard at this age × the class's factor, each believed as far as it was observed. The
pooled hazard itself leans on a curve that falls with age as 1/age, at the level of all uses. Classes may be parts of
groups: the group is estimated as one class, and its parts have its hazards times a factor, as far as their uses differ
from the group's by more than a standard deviation (believing all of a difference cost more by chance than it gave).

Traffic changes. Where a class's uses since the last refresh differ from those expected by far more than they usually
do (by chance, or because they come in bursts), what it had seen before counts little from then on.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

BUCKETS = 33
_EDGES = np.concatenate([[0.0], 2.0 ** (np.arange(BUCKETS) / 2)])  # bucket k: ages [_EDGES[k], _EDGES[k+1])
_WIDTHS = np.diff(_EDGES)
_LOWER = np.maximum(_EDGES[:-1], 1.0)
_UPPER_TRIANGLE = np.triu(np.ones((BUCKETS, BUCKETS)))  # [from, to], to >= from
_EDGES_LIST = _EDGES.tolist()
# of ages in whole requests, up to the last bucket's first: looking one up costs less than a search
_AGES = np.arange(int(_EDGES[BUCKETS - 1]) + 2)
_BUCKET_OF = (_EDGES.searchsorted(_AGES, side="right") - 1).astype(np.int8)
_BUCKET_BELOW = np.maximum(_EDGES.searchsorted(_AGES, side="left") - 1, 0).astype(
    np.int8
)  # of ages just below
PRIOR_USES = 2.0  # expected uses after which a class is believed as much as its prior, a bucket as its class
POOLED_USES = 0.5  # the same, of all classes together at one age
WRONG_DEVIATIONS = 3.0  # usual deviations by which a class's uses must differ from those expected
DOUBT_REQUESTS = 16  # since the last refresh: fewer tell little, and are asked about when little was seen
SPREAD_KEPT = 0.9  # of a class's usual squared deviation, from one refresh to the next
KEPT_WHEN_WRONG = 1 / 8  # of what a class had seen, when it turns out wrong
CHANGED = 0.02  # relative change of a hazard, below which its index isn't computed again


def age_bucket(age: np.ndarray) -> np.ndarray:
    """Bucket of ages in requests, >= 0."""
    return np.minimum(_EDGES.searchsorted(age, side="right") - 1, BUCKETS - 1)


def _bucket(age: float) -> int:
    """As `age_bucket`, for one age."""
    return min(bisect_right(_EDGES_LIST, age) - 1, BUCKETS - 1)


class ReuseIndex:
    """Tables of [classes, BUCKETS]. `value` is the index, recomputed by `refresh`.

    prior: float64[groups] - expected hazard of each group relative to the others'; None: all alike
    groups: int[classes] - the group of each class, ascending from 0; None: each is its own (needs no prior)
    """

    def __init__(
        self,
        classes: int,
        half_life_requests: float = 4000.0,
        prior: np.ndarray | None = None,
        groups: np.ndarray | None = None,
    ) -> None:
        self.classes = classes
        self.half_life_requests = half_life_requests
        self.prior = None if prior is None else np.asarray(prior, np.float64)
        self._groups = np.arange(classes) if groups is None else np.asarray(groups)
        self._firsts = np.flatnonzero(np.diff(self._groups, prepend=-1))  # the first class of each group
        self._is_part = np.bincount(self._groups)[self._groups] > 1
        self.uses = np.zeros((classes, BUCKETS))
        self.exposure = np.zeros((classes, BUCKETS))
        self.value = np.zeros((classes, BUCKETS))
        self._rate = np.zeros((classes, BUCKETS))  # hazards at the last refresh
        self._rate_of_value = np.full((classes, BUCKETS), -1.0)  # those that `value` was computed from
        self._before = np.zeros((2, classes, BUCKETS))  # uses and exposure at the last refresh
        self._spread = np.ones(classes)  # usual squared deviation of uses, in those of chance
        self._scratch = np.empty(
            (3, classes + len(self._firsts), BUCKETS, BUCKETS)
        )  # of `refresh`: fresh memory took longer than it
        self.refresh(0)

    def at(self, labels: np.ndarray, ages: np.ndarray) -> np.ndarray:
        """The index of records of these classes and ages (integers, >= 0)."""
        return self.value.take(labels * BUCKETS + _BUCKET_OF.take(ages, mode="clip"))

    def at_one(self, label: int, age: int) -> float:
        """As `at`, for one record."""
        return self.value.item(label, _bucket(age))

    def used(self, label: int, age: int) -> None:
        """A record of class `label` was used at this age."""
        self.uses[label, _bucket(age)] += 1

    def expose_one(self, label: int, from_age: int, to_age: int) -> None:
        """As `expose`, for one record."""
        first = _bucket(from_age)
        last = _bucket(max(to_age - 1e-9, from_age))
        low, exposure = float(from_age), self.exposure[label]
        for bucket in range(first, last):
            exposure[bucket] += _EDGES_LIST[bucket + 1] - low
            low = _EDGES_LIST[bucket + 1]
        exposure[last] += to_age - low

    def expose(self, labels: np.ndarray, from_age: np.ndarray, to_age: np.ndarray) -> None:
        """Records of these classes lived from one age to another without a use."""
        first = _BUCKET_OF.take(from_age, mode="clip").astype(np.int64)
        last = np.maximum(_BUCKET_BELOW.take(to_age, mode="clip"), first)
        low, high = from_age.astype(np.float64), to_age.astype(np.float64)
        total = np.zeros(self.exposure.size)
        while len(low):  # one bucket a turn; few records span many
            overlap = np.minimum(_EDGES[first + 1], high) - np.maximum(_EDGES[first], low)
            overlap[first == BUCKETS - 1] = (high - low)[first == BUCKETS - 1]
            total += np.bincount(labels * BUCKETS + first, overlap, minlength=total.size)
            more = first < last
            labels, high, first, last = labels[more], high[more], first[more] + 1, last[more]
            low = _EDGES[first]
        self.exposure += total.reshape(self.exposure.shape)

    def forget(self, kept: float) -> None:
        """Believe only a share of what was seen so far."""
        self.uses *= kept
        self.exposure *= kept
        self._before *= kept

    def refresh(self, elapsed_requests: int) -> None:
        """Decay, and recompute the index."""
        if self.prior is not None and elapsed_requests >= DOUBT_REQUESTS:
            self._doubt()
        decay = 0.5 ** (elapsed_requests / self.half_life_requests)
        self.uses *= decay
        self.exposure *= decay
        self._before[:] = self.uses, self.exposure
        rates, of_class = self._rates()
        self._rate = rates[of_class]
        tolerance = 0.0 if self.prior is None else CHANGED
        off = np.abs(self._rate - self._rate_of_value) > tolerance * self._rate_of_value
        changed = np.flatnonzero(off.any(axis=1))
        rows, at = np.unique(of_class[changed], return_inverse=True)
        self.value[changed] = self._indices(rates[rows])[at]
        self._rate_of_value[changed] = self._rate[changed]

    def _doubt(self) -> None:
        """Believe less of what a class had seen before, where its uses since then are none that this foretold."""
        uses, exposure = self.uses - self._before[0], self.exposure - self._before[1]
        expected = (exposure * self._rate).sum(1)
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
        hazard = np.minimum(rate, 20.0) * _WIDTHS
        held = np.where(rate > 1e-12, -np.expm1(-hazard) / np.maximum(rate, 1e-12), _WIDTHS)
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

    def _rates(self) -> tuple[np.ndarray, np.ndarray]:
        """Hazards by age, of what was seen and of what is believed before that counts; the row of each class."""
        if self.prior is None:
            weight = 2 * _LOWER
            expected = (self.uses.sum(0) + 0.25) / (self.exposure.sum(0) + weight)
            return (self.uses + weight * expected) / (self.exposure + weight), self._groups
        uses = np.add.reduceat(self.uses, self._firsts)
        exposure = np.add.reduceat(self.exposure, self._firsts)
        rates = _leaning(uses, exposure, self._expected(uses, exposure))
        whole = rates[self._groups]
        expected = (self.exposure * whole).sum(1)
        more = self.uses.sum(1) - expected
        others = np.flatnonzero(self._is_part & (np.abs(more) > np.sqrt(expected)))
        if len(others) == 0:
            return rates, self._groups
        more, expected = more[others], expected[others]
        factor = 1 + (more - np.sign(more) * np.sqrt(expected)) / (expected + PRIOR_USES)
        of_class = self._groups.copy()
        of_class[others] = len(rates) + np.arange(len(others))
        return np.concatenate([rates, factor[:, None] * whole[others]]), of_class

    def _expected(self, uses: np.ndarray, exposure: np.ndarray) -> np.ndarray:
        """Hazard that a group's bucket is believed to have before its own uses count."""
        factor = self.prior
        for _ in range(3):  # pooled hazard given the groups' factors, and those given the pooled hazard
            weighted = factor @ exposure
            level = (uses.sum() + 0.25) / ((weighted / _LOWER).sum() + PRIOR_USES)
            weight = POOLED_USES / level * _LOWER  # an age without uses leans on hazard = level / age
            pooled = (uses.sum(0) + POOLED_USES) / (weighted + weight)
            factor = (uses.sum(1) + PRIOR_USES * self.prior) / (exposure @ pooled + PRIOR_USES)
        return factor[:, None] * pooled


def _leaning(uses: np.ndarray, exposure: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Hazards observed, that lean on `expected` as on PRIOR_USES uses seen at that rate."""
    weight = PRIOR_USES / np.maximum(expected, 1e-9)
    return (uses + weight * expected) / (exposure + weight)
