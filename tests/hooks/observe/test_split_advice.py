"""What a server says of its own split between KV and states, and that it says it once."""

from __future__ import annotations

import logging
from collections import Counter
from types import SimpleNamespace

import pytest

from sglang_hooks.observe.split_advice import WINDOW_REQUESTS, SplitAdvice, advise

FULL, HALF_FREE = {"free": 0, "pool": 100}, {"free": 50, "pool": 100}


def test_advice() -> None:
    assert "Raise" in (advise(1_000, 60, {"pool-full": 9}, FULL) or "")
    assert advise(1_000, 40, {"pool-full": 9}, FULL) is None
    assert "Lower" in (advise(1_000, 0, {"kv-evicted": 9, "pool-full": 2}, HALF_FREE) or "")
    assert advise(1_000, 0, {"kv-evicted": 9}, FULL) is None, "both are short: no split helps"
    assert advise(0, 0, {}, HALF_FREE) is None


def test_it_is_said_once_until_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    stats = SimpleNamespace(requests=0, prompt_tokens=0, lost_tokens=Counter(), evictions=Counter())
    split = SplitAdvice(stats, lambda: FULL)
    with caplog.at_level(logging.WARNING):
        for lost in (100, 200, 200, 300):  # in all, of 1,000 tokens a window
            stats.requests += WINDOW_REQUESTS
            stats.prompt_tokens += 1_000
            stats.lost_tokens["evicted"] = lost
            split.look_if_due()
            split.look_if_due()
    assert len(caplog.records) == 2, "in the first window, and again after one without loss"
