"""Prompts that are each sent once, more than states fit, and then all again: some of their ends are kept, since nobody
has gone on from any answer yet."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
from engineless_cache import Driver, publish_settings

from marconi_ext.policies.learned import hazards


def reused_again(prompts: int, slots: int) -> float:
    """The share of the prompts' tokens that is reused at their second sending, last ones first."""
    publish_settings(64)
    driver = Driver("marconi", slots=slots, tokens=60_000, context_tokens=3_000, requests=1)
    rng = np.random.default_rng(0)
    asked = [rng.integers(1_000, 4_096, int(rng.integers(60, 200))) for _ in range(prompts)]
    hits = 0
    for number, prompt in enumerate(asked + asked[::-1]):
        answer = rng.integers(1_000, 4_096, 8)
        driver.serve(number, array("q", prompt.tolist()), array("q", answer.tolist()))
        hits += driver.hit_tokens
    return hits / sum(map(len, asked))


def test_a_crawl_leaves_ends_of_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    fair = reused_again(80, 61)
    monkeypatch.setattr(hazards, "UNUSED", float("inf"))
    doubted = reused_again(80, 61)
    assert fair > 0.2 > 0.1 > doubted, (fair, doubted)
