"""What is counted is what is read, in plain JSON types, and a tuning is logged."""

import json
import logging

import pytest

from marconi_ext.config import CheckpointKind
from sglang_hooks.stats import LOSS_CAUSES, CacheStats


def test_nothing_yet() -> None:
    snapshot = CacheStats().snapshot()
    assert snapshot["lost_tokens"] == dict.fromkeys(sorted(LOSS_CAUSES), 0)
    assert snapshot["evictions"] == [] and snapshot["states"] == {}


def test_counts_by_hand() -> None:
    """Two requests, 100 prompt tokens: 30 reused, 50 with cached KV, so 20 lost; one state saved, one evicted."""
    held = {CheckpointKind.BRANCH: 1}
    stats = CacheStats(lambda: held)
    stats.served(60, 0, 0, {})
    stats.served(40, 30, 50, {"evicted": 15, "first_divergence": 5})
    stats.saved(CheckpointKind.BRANCH)
    stats.refused(CheckpointKind.PROMPT_END)
    stats.evicted(CheckpointKind.LAST_TOKEN, "pool-full")
    stats.evicted(CheckpointKind.LAST_TOKEN, "pool-full")
    stats.planning_failed("not-written")
    snapshot = stats.snapshot()
    assert (snapshot["requests"], snapshot["prompt_tokens"]) == (2, 100)
    assert (snapshot["hit_tokens"], snapshot["kv_tokens"]) == (30, 50)
    assert snapshot["lost_tokens"]["evicted"] == 15 and sum(snapshot["lost_tokens"].values()) == 20
    assert snapshot["states"] == snapshot["saves"] == {"branch": 1}
    assert snapshot["refusals"] == {"prompt-end": 1}
    assert snapshot["evictions"] == [{"kind": "last-token", "reason": "pool-full", "states": 2}]
    assert snapshot["planning_failures"] == {"not-written": 1}
    assert json.loads(json.dumps(snapshot, allow_nan=False)) == snapshot
    held[CheckpointKind.BRANCH] = 7  # asked for at each snapshot
    assert stats.snapshot()["states"] == {"branch": 7}


def test_states_held_are_those_saved_less_those_evicted() -> None:
    stats = CacheStats()
    for kind in ("branch", "branch", "last-token"):
        stats.saved(kind)
    stats.evicted("branch", "pool-full")
    assert stats.snapshot()["states"] == {"branch": 1, "last-token": 1}
    stats.flushed()
    assert stats.snapshot()["states"] == {"branch": 0, "last-token": 0}
    assert {"kind": "branch", "reason": "flush", "states": 1} in stats.snapshot()["evictions"]


def test_a_tuning_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    stats = CacheStats()
    with caplog.at_level(logging.INFO, logger="sglang_hooks.stats"):
        stats.tuned({"alpha": 0.3}, seconds=0.5, requests_behind=12)
        stats.served(10, 0, 0, {})
        stats.tuned({"alpha": 0.7}, seconds=1.0, requests_behind=4)
        stats.served(10, 0, 0, {})
    assert stats.snapshot()["tuning"] == {
        "rounds": 2,
        "seconds": 1.5,
        "requests_behind": 4,
        "requests_since": 1,
    }
    assert stats.snapshot()["parameters"] == {"alpha": 0.7}
    assert "alpha=0.3->0.7 took=1.00s requests_behind=4" in caplog.messages[1]
