"""Rates and views against numbers worked by hand."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from marconi_ext.watch import rates, view
from marconi_ext.watch.server import Poll
from sglang_hooks.stats import CacheStats


def poll(at_s: float, *stats: CacheStats) -> Poll:
    slots = {"pool": 20, "free": 10, "cached": 8, "held": 1, "unaccounted": 1}
    policy = {"name": "marconi", "parameters": {"alpha": 0.4}}
    ranks = [
        {"version": "0.1.0", "slots": dict(slots), "policy": policy, "stats": one.snapshot()} for one in stats
    ]
    return Poll(at_s, "toy", "0.5.23", ranks, 12.5, {"running": 2.0})


def counted() -> CacheStats:
    """100 prompt tokens: 60 reused, 80 with KV, 20 lost, to two causes."""
    stats = CacheStats()
    stats.served(100, 60, 80, {"evicted": 15, "first_divergence": 5})
    stats.saved("branch")
    stats.saved("branch")
    stats.evicted("branch", "pool-full")
    return stats


def test_totals_since_the_start() -> None:
    found = rates.activity(poll(0, counted()))
    assert (found.seconds, found.requests, found.hit_percent, found.kv_hit_percent) == (None, 1, 60, 80)
    assert found.loss_percent["evicted"] == 15 and found.loss_percent["never_saved"] == 0
    assert found.evictions == {"branch, pool-full": 1} and found.prefilled_tokens == 40


def test_rates_between_two_polls() -> None:
    stats = counted()
    before = poll(10, stats)
    stats.served(300, 300, 300, {})
    stats.evicted("branch", "pool-full")
    found = rates.activity(poll(14, stats), before)
    assert (found.seconds, found.requests, found.prompt_tokens) == (4, 0.25, 75)
    assert found.hit_percent == 100 and sum(found.loss_percent.values()) == 0
    assert found.evictions == {"branch, pool-full": 0.25}


def test_no_prompts_is_no_rate_and_ranks_add_up() -> None:
    stats = counted()
    quiet = rates.activity(poll(2, stats), poll(1, stats))
    assert quiet.hit_percent is None and quiet.requests == 0
    two = poll(0, stats, counted())
    assert rates.activity(two).prompt_tokens == 200
    assert rates.standing(two).states == {"branch": 2} and rates.standing(two).slots["pool"] == 40


def test_a_restarted_server_is_noticed() -> None:
    assert rates.restarted(poll(2, CacheStats()), poll(1, counted()))
    assert not rates.restarted(poll(2, counted()), poll(1, counted()))


def test_json_holds_what_the_view_shows() -> None:
    found = rates.as_json(poll(1, counted()), None)
    assert found["last"] is None and found["total"]["hit_percent"] == 60 and found["running"] == 2
    assert rates.as_json(poll(2, counted()), poll(1, counted()))["last"]["seconds"] == 1


@pytest.mark.parametrize("width", [70, 120, 200])
def test_the_view_fits_any_terminal(width: int) -> None:
    stats = counted()
    stats.tuned({"alpha": 0.4}, 0.1, 7)
    console = Console(width=width)
    with console.capture() as captured:
        console.print(view.draw("http://x", poll(2, stats), poll(1, counted()), [10, None, 100]))
        console.print(view.draw("http://x", replace(poll(2, stats), gauges={}), None, []))
    text = captured.get()
    assert "alpha" in text and "its state was evicted" in text and "▁ █" in text
    assert max(len(line) for line in text.splitlines()) <= width


def test_bars_and_sparks() -> None:
    assert view.bar(0) == "" and view.bar(1) == "█" * view.BAR_CELLS and view.bar(7) == view.bar(1)
    assert view.bar(0.5 / view.BAR_CELLS) == "▌"
    assert view.sparkline([0, 50, 100, None]) == "▁▅█ "
    assert len(view.sparkline([1.0] * 500)) == view.SPARK_CELLS


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (80, 50), (120, 24), (200, 24), (60, 20)])
def test_nothing_is_cut_off_in_a_small_terminal(columns: int, rows: int) -> None:
    """Panels where they fit, else a few lines that say the same."""
    stats = counted()
    for kind in ("boundary", "input-end", "last-token", "prompt-end"):
        stats.saved(kind)
        stats.evicted(kind, "pool-full")
        stats.evicted(kind, "kv-evicted")
    console = Console(width=columns, height=rows, record=True, file=io.StringIO(), force_terminal=True)
    console.print(view.fitting(console, "http://x", poll(1, stats), None, [50.0, None, 100.0]))
    text = console.export_text()
    assert len(text.splitlines()) < rows
    for number in ("60.0", "80.0", "prompt tokens", "its state was evicted", "boundary"):
        assert number in " ".join(text.split()), number
