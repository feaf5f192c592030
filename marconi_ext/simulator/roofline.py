"""An estimate of prefill time from a GPU's roofline. It ranks policies; it doesn't predict a server."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from marconi_ext.profiles import ModelProfile
from marconi_ext.profiles.gpus import find_gpu

EFFICIENCY = 0.5  # share of the peak that a good prefill reaches

Length = TypeVar("Length", float, np.ndarray)


def prefill_s(profile: ModelProfile, prompt: Length, hit: Length, gpu: str) -> Length:
    """Seconds of prefill alone: no queue, no launch overhead, one read of the active weights. Lengths in tokens."""
    found = find_gpu(gpu)
    flops = profile.linear_flops * (prompt - hit) + profile.quadratic_flops * (prompt**2 - hit**2)
    return np.maximum(flops / (found.flops_per_s * EFFICIENCY), step_s(profile, gpu))


def step_s(profile: ModelProfile, gpu: str) -> float:
    """Seconds of a decode step: one read of the active weights."""
    # linear FLOPs are 2 a weight, and a weight is 2 bytes
    return profile.linear_flops / find_gpu(gpu).bytes_per_s


def ttft_estimate(profile: ModelProfile, prompts: np.ndarray, hits: np.ndarray, gpu: str = "h100") -> dict:
    """P50 and P95 (ms) of `prefill_s`."""
    times_ms = prefill_s(profile, prompts.astype(np.float64), hits.astype(np.float64), gpu) * 1e3
    p50, p95 = np.percentile(times_ms, [50, 95])
    return {"gpu": gpu, "p50_ms": round(float(p50), 3), "p95_ms": round(float(p95), 3), "is_estimate": True}
