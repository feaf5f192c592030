"""Ratios taken within pairs, so that a drifting machine cancels out."""

from __future__ import annotations

import numpy as np

DRAWS = 4_000


def paired_ratio(
    ours: np.ndarray, theirs: np.ndarray, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Median of ours / theirs over pairs, and its 95 % bootstrap interval."""
    ratios = ours / theirs
    drawn = np.median(rng.choice(ratios, (DRAWS, len(ratios))), axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
    return float(np.median(ratios)), low, high
