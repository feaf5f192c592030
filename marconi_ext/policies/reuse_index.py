"""A learned index of reuse: by class of checkpoint and age, how soon a state is used and what holding it costs.

For each class and age bucket (half octaves of requests) uses and exposure (requests during which a record of
the class had that age) decay with a half-life. From the hazards, the *index* is the largest ratio, over
horizons, of the chance of a use before the horizon to the slot-steps held until then: a Gittins index. A plain
hazard would undervalue a state used a moment ago, whose next use is near but not due yet.
"""

from __future__ import annotations

import numpy as np

BUCKETS = 33
_EDGES = np.concatenate([[0.0], 2.0 ** (np.arange(BUCKETS) / 2)])  # bucket k: ages [_EDGES[k], _EDGES[k+1])
_WIDTHS = np.diff(_EDGES)


def age_bucket(age: np.ndarray) -> np.ndarray:
    """Bucket of ages in requests, >= 0."""
    return np.minimum(_EDGES.searchsorted(age, side="right") - 1, BUCKETS - 1)


class ReuseIndex:
    """Tables of [classes, BUCKETS]. `value` is the index, recomputed by `refresh`."""

    def __init__(self, classes: int, half_life_requests: float = 4000.0) -> None:
        self.classes = classes
        self.half_life_requests = half_life_requests
        self.uses = np.zeros((classes, BUCKETS))
        self.exposure = np.zeros((classes, BUCKETS))
        self.value = np.zeros((classes, BUCKETS))
        self.refresh(0)

    def used(self, label: int, age: float) -> None:
        """A record of class `label` was used at this age."""
        self.uses[label, int(age_bucket(np.float64(age)))] += 1

    def expose(self, labels: np.ndarray, from_age: np.ndarray, to_age: np.ndarray) -> None:
        """Records of these classes lived from one age to another without a use."""
        if len(labels) == 0:
            return
        low, high = from_age.astype(np.float64), to_age.astype(np.float64)
        first, last = age_bucket(low), age_bucket(np.maximum(high - 1e-9, low))
        same = first == last
        flat = labels * BUCKETS
        total = np.zeros(self.exposure.size)
        total += np.bincount(flat[same] + first[same], (high - low)[same], minlength=total.size)
        for i in np.flatnonzero(~same):
            k = slice(first[i], last[i] + 1)
            overlap = np.minimum(_EDGES[1:][k], high[i]) - np.maximum(_EDGES[:-1][k], low[i])
            total[flat[i] + first[i] : flat[i] + last[i] + 1] += overlap
        self.exposure += total.reshape(self.exposure.shape)

    def refresh(self, elapsed_requests: int) -> None:
        """Decay, and recompute the index."""
        decay = 0.5 ** (elapsed_requests / self.half_life_requests)
        self.uses *= decay
        self.exposure *= decay
        lower = np.maximum(_EDGES[:-1], 1.0)
        pooled = (self.uses.sum(0) + 0.25) / (self.exposure.sum(0) + 2 * lower)
        rate = (self.uses + 2 * lower * pooled) / (self.exposure + 2 * lower)
        stay = np.exp(-np.minimum(rate, 20.0) * _WIDTHS)  # chance of no use within the bucket
        held = np.where(rate > 1e-12, (1 - stay) / np.maximum(rate, 1e-12), _WIDTHS)
        best = np.zeros_like(self.value)
        for start in range(BUCKETS):
            survive = np.cumprod(stay[:, start:], axis=1)
            reached = np.concatenate([np.ones((self.classes, 1)), survive[:, :-1]], axis=1)
            cost = np.cumsum(reached * held[:, start:], axis=1)
            best[:, start] = ((1 - survive) / cost).max(axis=1)
        self.value = best
