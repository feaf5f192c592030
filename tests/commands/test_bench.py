"""`marconi bench` against stand-in servers, and once, tiny, against the real engine."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import marconi
from pydantic import ValidationError

from marconi_ext.commands.bench.run import BenchOptions, groups
from marconi_ext.commands.bench.show import advice, bench_and_print
from marconi_ext.errors import CheckFailedError
from marconi_ext.models.toy_model import write_model
from marconi_ext.replay.outcome import summarise
from marconi_ext.replay.selection import Selection
from marconi_ext.replay.sender import Pacing, Run
from marconi_ext.replay.traffic import load_traffic
from marconi_ext.results.comparison import Comparison, Difference, compare, verdict_of
from marconi_ext.results.folder import (
    ArmInfo,
    RequestRecord,
    ResultsFolder,
    RunInfo,
    Status,
    Timing,
    TraceInfo,
    find_results,
)
from marconi_ext.servers.arms import choose_arms

STUB = (sys.executable, str(Path(__file__).parents[1] / "helpers" / "stub_server.py"))
LINE = "[2026-01-01 00:00:00] marconi-ext 0.1.0 live: checkpoints=branch,prompt,last slots=48"


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "toy")


def options(model: Path, out: Path, arms: str, **changes) -> BenchOptions:
    selection = Selection(sessions=4, limit=12, max_output_tokens=6)
    traffics = [load_traffic(f"synthetic:{n}", selection, history="own") for n in ("agent", "few-shot")]
    fields = {"cpu": True, "launcher": STUB, "start_timeout_s": 20, "pacing": Pacing(4), "traffics": traffics}
    return BenchOptions(model_path=model, arms=choose_arms(arms, 64), folder=out, **{**fields, **changes})


def test_arms_alternate(model: Path, tmp_path: Path) -> None:
    def names(**changes) -> list:
        found = groups(options(model, tmp_path, "off,stock", repeats=2, **changes))
        return [
            (len(up), [(r, " ".join(arm.name for arm in arms)) for r, arms in plays]) for up, plays in found
        ]

    assert names() == [(1, [(0, "off")]), (1, [(0, "stock")]), (1, [(1, "stock")]), (1, [(1, "off")])]
    assert names(side_by_side=True) == [(2, [(0, "off stock"), (1, "stock off")])]


def test_all_arms_are_played_and_compared(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("STUB_LINE", LINE)
    out = tmp_path / "out"
    bench_and_print(options(model, out, "stock,marconi:slots=64", repeats=2), tmp_path / "bench.json")
    shown = capsys.readouterr().out
    assert "marconi:slots=64" in shown and "against stock" in shown
    agent, few_shot = find_results(out)
    assert [agent.path.name, few_shot.path.name] == ["agent", "few-shot"]
    run = agent.run()
    assert run.finished and run.repeats == 2 and run.provenance["hardware"]["cores"]
    assert run.order == [("stock", 0), ("marconi:slots=64", 0), ("marconi:slots=64", 1), ("stock", 1)]
    stock, ours = sorted(run.arms, key=lambda arm: arm.name, reverse=True)
    assert stock.status_line is None and ours.status_line == LINE and "64" in ours.flags
    assert [len(list(r.requests())) for r in agent.repeats(ours)] == [12, 12]
    comparison = json.loads((tmp_path / "bench.json").read_text())["comparisons"][0]
    assert [arm["name"] for arm in comparison["arms"]] == ["stock", "marconi:slots=64"]
    for arm in comparison["arms"]:
        assert arm["hit_rate"] == arm["ideal_hit_rate"] > 0 and arm["state_limited_loss"] == 0
        assert (arm["repeats"], arm["requests"], arm["failed"], arm["answers_differing"]) == (2, 24, 0, 0)
    assert comparison["arms"][1]["loss_tokens"]["evicted"] > 0  # as the stub counts


def test_servers_side_by_side_take_turns(model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("STUB_LINE", LINE)
    out = tmp_path / "out"
    bench_and_print(options(model, out, "stock,marconi", repeats=2, side_by_side=True))
    for folder in find_results(out):
        run = folder.run()
        assert run.finished and [len(folder.repeats(arm)) for arm in run.arms] == [2, 2]
        assert run.order == [("stock", 0), ("marconi", 0), ("marconi", 1), ("stock", 1)]


def test_an_arm_that_is_not_live_is_refused_and_the_rest_is_kept(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(CheckFailedError, match="no line saying that the extension is live"):
        bench_and_print(options(model, out, "stock,marconi", repeats=2))
    (agent, _) = find_results(out)
    run = agent.run()
    assert [arm.name for arm in run.arms] == ["stock"] and not run.finished
    assert "no line saying" in run.error and len(agent.repeats(run.arms[0])) == 1


def test_lost_requests_are_no_success(model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("STUB_MODE", "http-500")
    monkeypatch.setenv("STUB_EVERY", "5")
    with pytest.raises(CheckFailedError, match="weren't answered"):
        bench_and_print(options(model, tmp_path / "out", "stock"))


def test_a_run_that_fails_before_it_begins_says_why(model: Path, tmp_path: Path) -> None:
    broken = options(model, tmp_path / "out", "stock", history="mine")
    with pytest.raises(ValidationError, match="history"):
        bench_and_print(broken, tmp_path / "bench.json")
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["comparisons"] == [] and "history" in written["error"]


def results(folder: Path, arms: dict[str, list[list[tuple]]]) -> ResultsFolder:
    """Arms of repeats of (session, cached, ttft in s) rows; prompts of 100 tokens, ideal 90."""
    found = ResultsFolder(folder)
    infos = [ArmInfo(name=name, folder=name) for name in arms]
    trace = TraceInfo(source="x", requests=1, sessions=1, prompt_tokens=1, digest="")
    found.write_run(
        RunInfo(
            created="",
            title="x",
            provenance={},
            trace=trace,
            timing=Timing(loop="closed"),
            arms=infos,
            repeats=2,
        )
    )
    for info in infos:
        for number, rows in enumerate(arms[info.name]):
            records = [
                RequestRecord(
                    session_id=session,
                    turn=turn,
                    status=Status.OK,
                    sent_s=0.0,
                    end_s=1.0,
                    prompt_tokens=100,
                    cached_tokens=cached,
                    ideal_tokens=90,
                    state_tokens=90,
                    ttft_s=ttft_s,
                    output_digest=str(cached),
                )
                for turn, (session, cached, ttft_s) in enumerate(rows)
            ]
            repeat = found.repeat(info, number)
            repeat.write_requests(records)
            repeat.write_summary(summarise(records, Run([])))
    return found


def test_differences_are_paired_and_worked_by_hand(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.uniform(0.1, 0.9, 20)
    base = [[(f"s{i}", 40, float(t)) for i, t in enumerate(noise)]] * 2
    other = [[(f"s{i}", 60, float(t) / 2) for i, t in enumerate(noise)]] * 2
    comparison = compare(results(tmp_path, {"stock": base, "ours": other}), ["stock", "ours"])
    assert (comparison.baseline, comparison.drawn, comparison.n) == ("stock", "sessions", 20)
    found = {d.figure: d for d in comparison.differences}
    for figure, value in {"hit_rate": 20, "state_limited_loss": -20, "prefilled_tokens": 0.6667}.items():
        assert found[figure].value == found[figure].low == found[figure].high == pytest.approx(value)
    # Paired: however different sessions are, each is twice as fast.
    assert (found["ttft_mean_s"].low, found["ttft_mean_s"].high) == (0.5, 0.5)
    assert found["ttft_p50_s"].repeats == (0.5, 0.5)
    assert [arm.answers_differing for arm in comparison.arms] == [0, 20]


def test_an_arm_against_its_own_noise_is_no_difference(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [[(f"s{i % 10}", 40, float(rng.uniform(0.1, 0.9))) for i in range(80)] for _ in range(4)]
    comparison = compare(results(tmp_path, {"a": rows[:2], "b": rows[2:]}), ["a", "b"])
    for difference in comparison.differences:
        assert difference.low <= (0 if difference.kind == "difference" else 1) <= difference.high


def noisy(rng, factor: float) -> list[tuple]:
    """Times of 20 sessions in one repeat, all `factor` times as long."""
    return [(f"s{i}", 40, factor * float(rng.uniform(0.9, 1.1))) for i in range(20)]


def test_noise_between_repeats_allows_no_verdict(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    base = [noisy(rng, f) for f in (1.0, 1.6, 1.1)]
    other = [noisy(rng, f) for f in (1.3, 1.7, 1.9)]  # no faster and no slower by itself
    comparison = compare(results(tmp_path / "1", {"stock": base, "ours": other}), ["stock", "ours"])
    found = {d.figure: d for d in comparison.differences}
    p50 = found["ttft_p50_s"]
    # Sessions alone would give an interval of a few hundredths about 1.3.
    assert p50.low <= p50.repeats[0] < 1.1 and p50.high >= p50.repeats[1] > 1.6
    assert p50.baseline_spread == pytest.approx(1.6, abs=0.1)
    assert p50.verdict in ("none", "noisy") and found["hit_rate"].verdict == "none"

    slower = [
        noisy(rng, f) for f in (2.0, 2.4, 2.2)
    ]  # above every repeat of the baseline, by less than they differ
    base = [noisy(rng, f) for f in (1.0, 1.9, 1.9)]
    comparison = compare(results(tmp_path / "2", {"stock": base, "ours": slower}), ["stock", "ours"])
    assert {d.figure: d.verdict for d in comparison.differences}["ttft_p50_s"] in ("none", "noisy")

    clear = [noisy(rng, f) for f in (5.0, 5.1, 5.2)]
    quiet = [noisy(rng, f) for f in (1.0, 1.02, 1.01)]
    comparison = compare(results(tmp_path / "3", {"stock": quiet, "ours": clear}), ["stock", "ours"])
    assert {d.figure: d.verdict for d in comparison.differences}["ttft_p50_s"] == "higher"
    assert advice(comparison) == []


def test_a_bias_no_larger_than_the_baseline_varies_is_refused() -> None:
    found = Difference("ours", "ttft_p50_s", "ratio", 1.2, 1.05, 1.4, (1.1, 1.3), baseline_spread=1.35)
    assert verdict_of(found, 3) == "noisy"
    assert verdict_of(replace(found, baseline_spread=1.1), 3) == "higher"
    assert verdict_of(replace(found, value=0.5, low=0.4, high=0.6, baseline_spread=2.5), 3) == "noisy"
    assert verdict_of(replace(found, value=0.5, low=0.4, high=0.6, baseline_spread=1.5), 3) == "lower"
    assert verdict_of(found, 1) == "one-repeat"
    comparison = Comparison("x", "stock", [], [replace(found, verdict="noisy")], "sessions", 20)
    (line,) = advice(comparison)
    assert "differ by 1.35 ×, more than the effect of 1.20 ×" in line and "--side-by-side" in line
    assert "--side-by-side" not in advice(comparison, side_by_side=True)[0]


def test_a_repeat_that_one_arm_lacks_is_left_out_of_differences(tmp_path: Path) -> None:
    rows = [(f"s{i}", 40, 0.5) for i in range(10)]
    cut_short = [(f"s{i}", 90, 0.1) for i in range(3)]
    comparison = compare(results(tmp_path, {"a": [rows], "b": [rows, cut_short]}), ["a", "b"])
    found = {d.figure: d.value for d in comparison.differences}
    assert found["hit_rate"] == 0 and found["prefilled_tokens"] == found["ttft_mean_s"] == 1
    assert comparison.n == 10  # and no session is dropped for it


def test_few_sessions_draw_requests_and_say_so(tmp_path: Path) -> None:
    rows = [[("only", 40, 0.1 * (i + 1)) for i in range(10)]]
    comparison = compare(results(tmp_path, {"a": rows, "b": rows}), ["a", "b"])
    assert (comparison.drawn, comparison.n) == ("requests", 10)


@pytest.mark.sglang
def test_bad_usage_names_the_flag_and_exits_2(tmp_path: Path) -> None:
    trace = ("--trace", "synthetic:agent")
    for arguments, message in (
        ((*trace, "--arms", "stock:max-state=3"), "arm stock knows slots"),
        ((*trace, "--history", "mine"), "--history mine"),
        ((*trace, *trace), "the same name"),
        ((*trace, "--scale", "0"), "--scale 0"),
        ((*trace, "--server-flags", '"abc'), "No closing quotation"),
        ((*trace, "--speed", "-1"), "--speed -1"),
        ((*trace, "--speed", "0"), "--speed 0"),
        ((*trace, "--max-rate", "nan"), "--max-rate nan"),
        ((*trace, "--model-path", "/nowhere"), "--model-path /nowhere"),
    ):
        found = marconi("bench", *arguments)
        assert found.returncode == 2 and message in found.stderr, found.stderr


@pytest.mark.engine
def test_stock_and_extension_on_the_real_engine(tmp_path: Path) -> None:
    small = ("--trace", "synthetic:agent", "--sessions", "2", "--max-output-tokens", "8", "--repeat", "1")
    out, file = tmp_path / "out", tmp_path / "bench.json"
    found = marconi(
        "bench", *small, "--concurrency", "1", "--side-by-side", "--out", str(out), "--json", str(file)
    )
    assert found.returncode == 0, found.stderr
    (comparison,) = json.loads(file.read_text())["comparisons"]
    stock, ours = comparison["arms"]
    assert stock["requests"] == ours["requests"] == 16
    assert stock["avoidable"] > 1 and ours["avoidable"] == 0 == ours["answers_differing"]
    assert ResultsFolder(out).run().arms[1].status_line
