"""What the charts draw, against numbers worked by hand."""

from pathlib import Path

import numpy as np
import pytest
from made_results import ARMS, POOL, SESSIONS, TURNS, write_results

from marconi_ext.report import series
from marconi_ext.report.series import ArmSeries
from marconi_ext.results.folder import RequestRecord, ResultsFolder, ServerSnapshot, Status


def answered(
    sent_s: float, prompt: int, cached: int | None, ideal: int, ttft_s: float = 0.01
) -> RequestRecord:
    return RequestRecord(
        session_id="s",
        turn=0,
        status=Status.OK,
        sent_s=sent_s,
        ttft_s=ttft_s,
        prompt_tokens=prompt,
        cached_tokens=cached,
        ideal_tokens=ideal,
    )


def arm(*records: RequestRecord, snapshots: tuple[ServerSnapshot, ...] = ()) -> ArmSeries:
    return ArmSeries("x", [list(records)], [list(snapshots)])


def test_cdf_in_milliseconds() -> None:
    ttft_ms, share = series.ttft_cdf(arm(answered(0, 1, 0, 0, 0.004), answered(0, 1, 0, 0, 0.002)))
    assert ttft_ms.tolist() == [2, 4] and share.tolist() == [50, 100]


def test_rates_are_weighted_by_tokens_and_empty_bins_have_none() -> None:
    """In the first tenth 10 of 100 and 90 of 300 tokens, then nothing, at the end all of 50."""
    found = series.hit_rate_over_time(
        arm(answered(0.0, 100, 10, 50), answered(0.1, 300, 90, 150), answered(10.0, 50, 50, 50))
    )
    assert found.y["hit"][0] == 25 and found.y["ideal"][0] == 50 and found.y["hit"][-1] == 100
    assert np.isnan(found.y["hit"][1])


def test_a_server_that_reports_no_hits_has_no_hit_rate() -> None:
    assert len(series.hit_rate_over_time(arm(answered(0, 10, None, 0))).x) == 0


def test_lengths_are_shared_out_evenly_and_nothing_is_left_out() -> None:
    one = arm(*(answered(0, n, n // 2, n) for n in range(1, 1_001)))
    edges = series.length_edges([one])
    hit, ideal, requests = series.hit_rate_by_length(one, edges)
    assert requests.sum() == 1_000 and requests.min() > 100
    assert all(edge == round(edge, -1) for edge in edges[1:-1] if edge > 100)
    assert hit == pytest.approx(50, abs=1) and ideal == pytest.approx(100)


@pytest.mark.parametrize("lengths", [[7], [5, 5, 5], [1, 100_000]])
def test_few_lengths_make_fewer_bins(lengths: list[int]) -> None:
    one = arm(*(answered(0, n, 0, 0) for n in lengths))
    assert series.hit_rate_by_length(one, series.length_edges([one]))[2].sum() == len(lengths)


def test_contents_and_evictions_of_a_watched_server(tmp_path: Path) -> None:
    arms = {a.name: a for a in series.read_arms(ResultsFolder(write_results(tmp_path / "r")))}
    assert list(arms) == list(ARMS)
    lines, pool = series.contents(arms["marconi"])
    assert pool == POOL and sum(v[-1] for v in lines.y.values()) == POOL
    evicted = series.evictions(arms["marconi"])
    step_s = evicted.x[1] - evicted.x[0]
    assert sum(v.sum() for v in evicted.y.values()) * step_s == pytest.approx(SESSIONS * TURNS - POOL)
    stock, no_pool = series.contents(arms["stock"])
    assert no_pool is None and stock.y["any kind"].max() == POOL
    assert series.evictions(arms["stock"]).y == {}


def test_a_server_that_nobody_watched() -> None:
    assert len(series.contents(arm(answered(0, 1, 0, 0)))[0].x) == 0
    assert series.evictions(arm(answered(0, 1, 0, 0))).y == {}
