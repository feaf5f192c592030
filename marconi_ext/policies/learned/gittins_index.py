"""The index of each class and age: the largest survival-weighted mean of the hazard over any window of ages from there.

    G(a) = max over t > a of (S(a) - S(t)) / (∫ S from a to t),   S(a) = exp(-∫ λ from 0 to a)

It is the chance of a use before the horizon t per slot-step held until then: a Gittins index. A plain hazard would
undervalue a state used a moment ago, whose next use is near but not due yet.
"""

from __future__ import annotations

import numpy as np

from marconi_ext.policies.learned.hazards import BUCKET_OF, BUCKETS, WIDTHS, Hazards, bucket_of_age

MOST_HAZARD = 20.0  # uses a request: e to its power is a number still
# windows of ages by their first bucket: that, the bucket after their last, and where each first one's windows begin
_FROM, _LAST = np.triu_indices(BUCKETS)
_TO = _LAST + 1
_BEGIN = np.flatnonzero(np.diff(_FROM, prepend=-1))
_UNREACHED = 1e-200  # chances below are lost in rounding: the hazard itself is the index there


class GittinsIndex(Hazards):
    """`value` is the index and `rate` the hazard of each class and bucket, as of the last `refresh`.

    They are computed when first asked for, or by `catch_up` before that.
    """

    def __init__(
        self,
        classes: int,
        half_life_requests: float = 4000.0,
        prior: tuple[float, ...] | np.ndarray | None = None,
        groups: np.ndarray | None = None,
        doubted: np.ndarray | None = None,
    ) -> None:
        super().__init__(classes, prior, groups, doubted)
        self.half_life_requests = half_life_requests
        self._due: tuple[np.ndarray, np.ndarray] | None = None  # what was seen by then: uses, exposure
        self._value = np.zeros((classes, BUCKETS))
        self._rate = np.zeros((classes, BUCKETS))
        self._rows: list[list[float]] = []  # `value`: looked up for less
        self.refresh(0)

    @property
    def value(self) -> np.ndarray:
        self.catch_up()
        return self._value

    @property
    def rate(self) -> np.ndarray:
        self.catch_up()
        return self._rate

    def at(self, labels: np.ndarray, ages: np.ndarray) -> np.ndarray:
        """The index of records of these classes and ages (integers, >= 0)."""
        return self.value.take(labels * BUCKETS + BUCKET_OF.take(ages, mode="clip"))

    def at_one(self, label: int, age: int) -> float:
        """As `at`, for one record."""
        self.catch_up()
        return self._rows[label][bucket_of_age(age)]

    def believe_less(self, share: float) -> None:
        """Count only this share of all that was seen."""
        self.uses *= share
        self.exposure *= share

    def refresh(self, elapsed_requests: int) -> None:
        """Decay, and take what is counted now for the index."""
        self.believe_less(0.5 ** (elapsed_requests / self.half_life_requests))
        self._due = self.uses.copy(), self.exposure.copy()

    def catch_up(self) -> None:
        """Compute the index, if it is due."""
        if self._due is None:
            return
        rates, of_class = self.rates(*self._due)
        self._due = None
        self._rate = rates[of_class]
        self._value = np.ascontiguousarray(gittins(rates)[of_class])  # it is taken from flat
        self._rows = self._value.tolist()


def gittins(rates: np.ndarray) -> np.ndarray:
    """The index of hazards, row by row: float64[n, BUCKETS], > 0."""
    rates = np.minimum(rates.T, MOST_HAZARD)  # by bucket: windows are whole rows then
    # at each bucket's start, and ∫ of it from there on
    survival, rest = np.zeros((2, BUCKETS + 1, rates.shape[1]))
    np.cumsum(rates * WIDTHS[:, None], axis=0, out=survival[1:])
    survival = np.exp(-survival)
    used = survival[:-1] - survival[1:]
    # the smallest terms are added first, or they would be lost in rounding
    np.cumsum((used / rates)[::-1], axis=0, out=rest[BUCKETS - 1 :: -1])
    # by window: chance of a use in it, and the slot-steps held
    chance = survival.take(_FROM, axis=0) - survival.take(_TO, axis=0)
    steps = rest.take(_FROM, axis=0) - rest.take(_TO, axis=0)
    steps[steps <= _UNREACHED] = np.inf
    best = np.maximum.reduceat(chance / steps, _BEGIN, axis=0)
    return np.maximum(best, np.where(survival[:-1] > _UNREACHED, 0.0, rates)).T
