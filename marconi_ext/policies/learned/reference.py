"""The policy's equation, computed plainly: what `gittins.py` does fast must be equal to it, to the bit.

    V(r) = [ w_r·G_c(r)(age_r) + max over ghosts g that r serves of w_g·G_c(g)(age_g) ]
           · [ F(depth_r) - F(above_r) ] / bytes_r
    G_c(a) = the largest survival-weighted mean of the hazard λ_c over any window of ages that begins at a
    λ_c(b) = (uses + 2) / (exposure + 2 / λ0_c(b)),   λ0_c(b) = factor of the class · pooled hazard at age b
    prior of what was superseded: 1/50 of its own until one such record is used, or nothing was for long
    F(L) = linear·L + quadratic·L²;   w = 1/16 for records unused since a change of traffic, for 256 requests, else 1

Uses and exposure are those at the last refresh: classes by age buckets. A class that is part of a group has the group's
hazard, times a factor as far as its uses differ from the group's by more than a standard deviation.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import sqrt

import numpy as np

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.learned.lru_share import BEFORE

EDGES = [0.0, *(2.0 ** (k / 2) for k in range(33))]  # ages in requests: bucket b is EDGES[b] to EDGES[b + 1]
WIDTHS = [high - low for low, high in pairwise(EDGES)]
Table = list[list[float]]  # of classes by buckets


@dataclass(frozen=True)
class Record:
    """age: requests since its last use; above: depth of the nearest live state above that will last (tokens)
    before: it is unused since a change of traffic that was lately; tail_tokens: KV that goes with a leaf's state
    serves: the live record that serves in place of this ghost; None: it is live, or nothing is
    """

    label: int
    age: int
    depth: int
    above: int
    before: bool = False
    tail_tokens: int = 0
    serves: int | None = None


def values(
    records: dict[int, Record],
    uses: Table,
    exposure: Table,
    prior: list[float],
    groups: list[int],
    doubted: list[bool],
    money: Currency,
) -> dict[int, float]:
    """V of each live record."""
    rates = hazards(uses, exposure, prior, groups, doubted)
    index = {label: gittins(rates[label]) for label in {record.label for record in records.values()}}

    def weighted(record: Record) -> float:
        bucket = min(bisect_right(EDGES, record.age) - 1, len(WIDTHS) - 1)
        return index[record.label][bucket] * (BEFORE if record.before else 1.0)

    found = {}
    for row, record in records.items():
        if record.serves is None:
            ghosts = [weighted(ghost) for ghost in records.values() if ghost.serves == row]
            worth = money.worth(record.depth, record.above)
            cost = money.state_bytes + money.kv_bytes_per_token * record.tail_tokens
            found[row] = (weighted(record) + max(ghosts, default=0.0)) * worth / cost
    return found


def gittins(rates: list[float]) -> list[float]:
    """G at each bucket's start."""
    rates = [min(rate, 20.0) for rate in rates]
    passed = total([rate * width for rate, width in zip(rates, WIDTHS, strict=True)])
    survival = [float(np.exp(-hazard)) for hazard in [0.0, *passed]]
    steps = [(low - high) / rate for (low, high), rate in zip(pairwise(survival), rates, strict=True)]
    rest = [*total(steps[::-1])[::-1], 0.0]  # slot-steps from each bucket's start on
    found = []
    for a in range(len(rates)):
        windows = [
            (survival[a] - survival[t]) / (rest[a] - rest[t])
            for t in range(a + 1, len(rest))
            if rest[a] - rest[t] > 1e-200
        ]
        found.append(max(*windows, 0.0 if survival[a] > 1e-200 else rates[a], 0.0))
    return found


def hazards(
    uses: Table, exposure: Table, prior: list[float], groups: list[int], doubted: list[bool]
) -> Table:
    """λ of each class."""
    members = [[c for c, group in enumerate(groups) if group == g] for g in range(len(prior))]
    used = [[total([uses[c][b] for c in classes])[-1] for b in range(len(WIDTHS))] for classes in members]
    lived = [
        [total([exposure[c][b] for c in classes])[-1] for b in range(len(WIDTHS))] for classes in members
    ]
    unused = not any(sum(row) for row, doubt in zip(used, doubted, strict=True) if doubt)
    nothing_used = not any(map(sum, used))
    if unused and not (nothing_used and total([e for row in lived for e in row])[-1] >= 512.0):
        prior = [0.02 * p if doubt else p for p, doubt in zip(prior, doubted, strict=True)]
    believed = expected(used, lived, prior)
    of_group = [
        [(u + 2.0) / (e + 2.0 / b) for u, e, b in zip(*rows, strict=True)]
        for rows in zip(used, lived, believed, strict=True)
    ]
    found = []
    for c, g in enumerate(groups):
        likely = total([e * rate for e, rate in zip(exposure[c], of_group[g], strict=True)])[-1]
        more = total(uses[c])[-1] - likely
        factor = 1.0
        if len(members[g]) > 1 and abs(more) > sqrt(likely):
            factor = 1 + (more - (1.0 if more > 0 else -1.0) * sqrt(likely)) / (likely + 2.0)
        found.append([factor * rate for rate in of_group[g]])
    return found


def expected(used: Table, lived: Table, prior: list[float]) -> Table:
    """λ0 of each group: its factor times the pooled hazard, each given the other, in three rounds."""
    lower = [max(edge, 1.0) for edge in EDGES[: len(WIDTHS)]]
    all_used = total([u for row in used for u in row])[-1]
    at_age = [total([row[b] for row in used])[-1] for b in range(len(WIDTHS))]
    factor = prior
    for _ in range(3):
        lived_at = [
            total([f * row[b] for f, row in zip(factor, lived, strict=True)])[-1] for b in range(len(WIDTHS))
        ]
        level = (all_used + 0.5) / (
            total([e / low for e, low in zip(lived_at, lower, strict=True)])[-1] + 2.0
        )
        pooled = [
            (u + 0.5) / (e + 0.5 / level * low) for u, e, low in zip(at_age, lived_at, lower, strict=True)
        ]
        factor = [
            (total(u)[-1] + 2.0 * p)
            / (total([x * rate for x, rate in zip(e, pooled, strict=True)])[-1] + 2.0)
            for u, e, p in zip(used, lived, prior, strict=True)
        ]
    return [[f * rate for rate in pooled] for f in factor]


def total(terms: list[float]) -> list[float]:
    """Running sums, from left to right."""
    return list(accumulate(terms))
