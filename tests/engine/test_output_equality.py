"""With the extension, greedy tokens equal those with the prefix cache off, and logprobs agree to 1e-4."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from live_server import PAGE_CHECKS, RANK_CHECKS, running
from server_pair import Answer

from marconi_ext.results.ideal import IdealCache
from marconi_ext.traces.request import Request, token_array

pytestmark = pytest.mark.engine

Case = tuple[np.ndarray, int, Answer]


def assert_equal_outputs(cases: list[Case], answers: list[Answer]) -> None:
    for number, ((_, _, expected), answer) in enumerate(zip(cases, answers, strict=True)):
        assert answer.output_ids == expected.output_ids, f"request {number}"
        np.testing.assert_allclose(answer.logprobs, expected.logprobs, atol=1e-4, rtol=0, err_msg=str(number))


def cached(answers: list[Answer]) -> int:
    return sum(answer.cached_tokens for answer in answers)


def expected_hits(cases: list[Case], page_size: int = 1) -> list[int]:
    """What an unlimited cache of exact states gives each request, one after another."""
    yardstick = IdealCache(page_size)
    return [
        yardstick.serve(Request(str(i), 0, float(i), prompt, token_array(answer.output_ids))).state_tokens
        for i, (prompt, _, answer) in enumerate(cases)
    ]


def test_one_at_a_time_every_hit_is_exact(model: Path, cases: list[Case]) -> None:
    """Overlap on, ample pool: each request reuses all that exact states can give, to the token.

    The default policy saves where it guesses that requests will part, and ends of inputs are learned, too, so neither
    is used here.
    """
    kinds = "branch,prompt-end,last-token"
    with running(model, marconi_eviction="exact+lru", marconi_checkpoints=kinds) as live:
        answers = [live.generate(prompt, answer_tokens) for prompt, answer_tokens, _ in cases]
        assert_equal_outputs(cases, answers)
        assert [answer.cached_tokens for answer in answers] == expected_hits(cases)
        census = live.assert_nothing_leaked()
        assert census["cached"] > 0
        live.server.flush_cache()
        assert live.assert_nothing_leaked() == {
            "pool": census["pool"],
            "free": census["pool"],
            "cached": 0,
            "held": 0,
            "unaccounted": 0,
        }


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"chunked_prefill_size": 256, "enable_mixed_chunk": True}, id="chunked-and-mixed"),
        pytest.param({"page_size": 16, "chunked_prefill_size": 256}, id="page-16"),
        pytest.param({"page_size": 64, "disable_overlap_schedule": True}, id="page-64-no-overlap"),
        pytest.param({"tp_size": 2, "max_mamba_cache_size": 60}, id="two-ranks-tight"),
        pytest.param(
            {"enable_hierarchical_cache": True, "max_mamba_cache_size": 96}, id="hierarchical-cache"
        ),
        pytest.param({"max_mamba_cache_size": 60, "max_total_tokens": 12_000}, id="tight-pools"),
    ],
)
def test_eight_at_a_time(model: Path, cases: list[Case], options: dict[str, object]) -> None:
    """Batches of several requests; the prompts are fixed, so the order of arrival can't matter."""
    env = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1", **RANK_CHECKS} if options.get("tp_size") == 2 else {}
    if options.get("max_total_tokens"):
        env |= PAGE_CHECKS
    with running(model, env=env, **options) as live:
        answers = live.generate_all([(prompt, tokens) for prompt, tokens, _ in cases], concurrency=8)
        assert_equal_outputs(cases, answers)
        assert cached(answers) > 0.5 * sum(expected_hits(cases, options.get("page_size", 1)))
        live.assert_nothing_leaked()
