"""Hazards of reuse: by class of checkpoint and age, how often a record is used in a request.

For each class and age bucket (half octaves of requests) uses and exposure (requests during which a record of
the class had that age) are counted. Where little has been seen, a bucket leans on its class, and a class on what is
expected of it (`prior`, relative to a tail): hazard = pooled hazard at this age × the class's factor, each believed as
far as it was observed. The pooled hazard itself leans on a curve that falls with age as 1/age, at the level of all
uses. Classes may be parts of groups: the group is estimated as one class, and its parts have its hazards times a
factor, as far as their uses differ from the group's by more than a standard deviation (believing all of a difference
cost more by chance than it gave). Some groups are doubted until one of their records is used: where nobody ever comes
back to what his conversation has passed, no such state is worth a slot.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

BUCKETS = 33
_EDGES = np.array([0.0, *(2.0 ** (k / 2) for k in range(BUCKETS))])  # bucket k: ages [_EDGES[k], _EDGES[k+1])
WIDTHS = np.diff(_EDGES)
_LOWER = np.maximum(_EDGES[:-1], 1.0)
_EDGES_LIST = _EDGES.tolist()
_INNER_EDGES = _EDGES_LIST[1:BUCKETS]
# of ages in whole requests, up to the last bucket's first: looking one up costs less than a search
_AGES = np.arange(int(_EDGES[BUCKETS - 1]) + 2)
BUCKET_OF = (_EDGES.searchsorted(_AGES, side="right") - 1).astype(np.int8)
_BUCKET_BELOW = np.maximum(_EDGES.searchsorted(_AGES, side="left") - 1, 0).astype(
    np.int8
)  # of ages just below
PRIOR_USES = 2.0  # expected uses after which a class is believed as much as its prior, a bucket as its class
DOUBT = 1 / 50  # of the prior of doubted groups, while none of them has a use
UNUSED = 512.0  # records × requests without any use, after which prompts may as well come again as go on
POOLED_USES = 0.5  # the same, of all classes together at one age
ROUNDS = 3


def age_bucket(age: np.ndarray) -> np.ndarray:
    """Bucket of ages in requests, >= 0."""
    return np.minimum(_EDGES.searchsorted(age, side="right") - 1, BUCKETS - 1)


def bucket_of_age(age: float) -> int:
    """As `age_bucket`, for one age."""
    return bisect_right(_INNER_EDGES, age)


class Hazards:
    """Tables of [classes, BUCKETS].

    prior: float64[groups] - expected hazard of each group relative to the others'; None: all alike
    groups: int[classes] - the group of each class, ascending from 0; None: each is its own (needs no prior)
    doubted: bool[groups] - whose prior counts for little until one of them is used; None: no group's
    """

    def __init__(
        self,
        classes: int,
        prior: tuple[float, ...] | np.ndarray | None = None,
        groups: np.ndarray | None = None,
        doubted: np.ndarray | None = None,
    ) -> None:
        self.classes = classes
        self.doubted = doubted
        self.prior = None if prior is None else np.asarray(prior, np.float64)
        self.groups = np.arange(classes) if groups is None else np.asarray(groups)
        self._is_part = np.bincount(self.groups)[self.groups] > 1
        self._cells = (self.groups[:, None] * BUCKETS + np.arange(BUCKETS)).ravel()  # of the groups' tables
        self.uses = np.zeros((classes, BUCKETS))
        self.exposure = np.zeros((classes, BUCKETS))

    def used(self, label: int, age: int) -> None:
        """A record of class `label` was used at this age."""
        self.uses[label, bucket_of_age(age)] += 1

    def expose_one(self, label: int, from_age: int, to_age: int) -> None:
        """As `expose`, for one record."""
        first = bucket_of_age(from_age)
        last = bucket_of_age(max(to_age - 1e-9, from_age))
        low, exposure = float(from_age), self.exposure[label]
        for bucket in range(first, last):
            exposure[bucket] += _EDGES_LIST[bucket + 1] - low
            low = _EDGES_LIST[bucket + 1]
        exposure[last] += to_age - low

    def expose(self, labels: np.ndarray, from_age: np.ndarray, to_age: np.ndarray) -> None:
        """Records of these classes lived from one age to another without a use."""
        first = BUCKET_OF.take(from_age, mode="clip").astype(np.int64)
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

    def rates(self, uses: np.ndarray, exposure: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hazards by age, of what was seen and of what is believed before that counts; the row of each class."""
        if self.prior is None:
            weight = 2 * _LOWER
            expected = (uses.sum(0) + 0.25) / (exposure.sum(0) + weight)
            return (uses + weight * expected) / (exposure + weight), self.groups
        used, lived = self._by_group(uses), self._by_group(exposure)
        rates = (used + PRIOR_USES) / (lived + PRIOR_USES / self._expected(used, lived))
        whole = rates[self.groups]
        likely = _total(exposure * whole)  # uses of each class, had it its group's hazard
        more = _total(uses) - likely
        others = np.flatnonzero(self._is_part & (np.abs(more) > np.sqrt(likely)))
        if len(others) == 0:
            return rates, self.groups
        more, likely = more[others], likely[others]
        factor = 1 + (more - np.sign(more) * np.sqrt(likely)) / (likely + PRIOR_USES)
        of_class = self.groups.copy()
        of_class[others] = len(rates) + np.arange(len(others))
        return np.concatenate([rates, factor[:, None] * whole[others]]), of_class

    def _by_group(self, counts: np.ndarray) -> np.ndarray:
        """Sums over the classes of each group: float64[groups, BUCKETS]."""
        assert self.prior is not None
        size = len(self.prior) * BUCKETS
        return np.bincount(self._cells, counts.ravel(), size).reshape(-1, BUCKETS)  # one class after another

    def _expected(self, uses: np.ndarray, exposure: np.ndarray) -> np.ndarray:
        """Hazard that a group's bucket is believed to have before its own uses count."""
        assert self.prior is not None  # groups come with one
        prior = self.prior
        if self.doubted is not None and self._goes_on(uses, exposure):
            prior = np.where(self.doubted, DOUBT * prior, prior)
        factor = prior
        all_uses, at_age = _total(uses.ravel()) + POOLED_USES, _total(uses.T) + POOLED_USES
        of_group = _total(uses) + PRIOR_USES * prior
        for _ in range(ROUNDS):  # pooled hazard given the groups' factors, and those given the pooled hazard
            weighted = _total(factor * exposure.T)
            level = all_uses / (_total(weighted / _LOWER) + PRIOR_USES)
            # an age without uses leans on hazard = level / age
            pooled = at_age / (weighted + POOLED_USES / level * _LOWER)
            factor = of_group / (_total(exposure * pooled) + PRIOR_USES)
        return factor[:, None] * pooled

    def _goes_on(self, uses: np.ndarray, exposure: np.ndarray) -> bool:
        """Whether conversations go on, and nobody comes back to what they have passed, as far as seen."""
        if not uses.any():  # a crawl, once there was time for a next turn
            return bool(_total(exposure.ravel()) < UNUSED)
        return not uses[self.doubted].any()


def _total(terms: np.ndarray) -> np.ndarray:
    """Sums over the last axis from left to right, as a loop would add them: the same to the bit as `reference.py`."""
    return np.cumsum(terms, axis=-1)[..., -1]
