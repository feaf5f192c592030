"""Routers of `marconi bench --servers`, and what is made of their runs; the servers themselves are in tests/engine."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from marconi_ext.commands.bench.routed_show import interval, summary
from marconi_ext.commands.bench.routers import check_routers, make_router
from marconi_ext.errors import BadInputError

PROMPT = np.arange(3)
URLS = ["http://a", "http://b"]


def test_round_robin_and_sticky(tmp_path: Path) -> None:
    turn = make_router("round-robin", URLS, [], tmp_path)
    assert [turn.pick(PROMPT, "s").url for _ in range(3)] == ["http://a", "http://b", "http://a"]
    home = make_router("sticky", URLS, [], tmp_path)
    assert [home.pick(PROMPT, name).url for name in "aabcab"] == [URLS[i] for i in (0, 0, 1, 0, 0, 1)]


def test_routers_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    binary = tmp_path / "sglang-router"
    binary.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check_routers("sticky, sglang:cache_aware") == ["sticky", "sglang:cache_aware"]
    for wrong in ("best", "", "sglang:best"):
        with pytest.raises(BadInputError, match="--router"):
            check_routers(wrong)


def test_without_sglang_router_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(BadInputError, match="pip install sglang-router"):
        check_routers("sticky,sglang:manual")  # before any server starts
    with pytest.raises(BadInputError, match="pip install sglang-router"):
        make_router("sglang:manual", URLS, [], tmp_path)


def row(router: str, run: int, hit: float) -> dict:
    rest = {
        "ideal_hit_rate": 0.9,
        "busiest_over_mean": 1.0,
        "state_limited_loss": None,
        "simulated_hit_rate": hit,
        "simulated_otherwise": 1,
    }
    return {
        "traffic": "t",
        "run": run,
        "router": router,
        "token_hit_rate": hit,
        "ttft_ms": {"p50": 1.0, "p95": 2.0},
        **rest,
    }


def test_gains_are_paired_run_by_run() -> None:
    rows = [row("sticky", 0, 0.5), row("resumable", 0, 0.6), row("sticky", 1, 0.7), row("resumable", 1, 0.8)]
    sticky, ours = summary(rows)
    assert sticky["resumable_gains"] == pytest.approx(0.1) and sticky["gains_interval"] == pytest.approx(
        0, abs=1e-9
    )
    assert ours["token_hit_rate"] == pytest.approx(0.7) and ours["interval"] == pytest.approx(12.71 * 0.1)
    assert sticky["state_limited_loss"] is None
    assert interval([3.0]) == (3.0, None)
