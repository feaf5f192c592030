"""A prefill's time from a GPU's peak: bound by weights where prompts are short, by FLOPs where they are long."""

import numpy as np
import pytest

from marconi_ext.profiles import load_profile
from marconi_ext.profiles.gpus import find_gpu
from marconi_ext.simulator.roofline import EFFICIENCY, prefill_s, ttft_estimate

PROFILE = load_profile("nemotron-h-8b")


def test_a_hit_leaves_what_comes_behind_it() -> None:
    gpu = find_gpu("h100")
    flops = PROFILE.linear_flops * 10_000 + PROFILE.quadratic_flops * (20_000**2 - 10_000**2)
    assert prefill_s(PROFILE, 20_000.0, 10_000.0, "h100") == pytest.approx(
        flops / (gpu.flops_per_s * EFFICIENCY)
    )


def test_a_short_prompt_still_reads_the_weights() -> None:
    one, ten = prefill_s(PROFILE, np.array([1.0, 10.0]), np.zeros(2), "h100")
    assert one == ten == pytest.approx(PROFILE.linear_flops / find_gpu("h100").bytes_per_s)


def test_the_estimate_says_that_it_is_one() -> None:
    found = ttft_estimate(PROFILE, np.full(100, 8_000), np.zeros(100, np.int64), "a100")
    assert found["is_estimate"] and found["gpu"] == "a100" and found["p50_ms"] == found["p95_ms"]
    assert found["p50_ms"] > ttft_estimate(PROFILE, np.full(9, 8_000), np.full(9, 7_000), "a100")["p50_ms"]
