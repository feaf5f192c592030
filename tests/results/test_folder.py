"""A results folder is read back as it was written, and what is wrong with one is named."""

import json
from pathlib import Path

import pytest

from marconi_ext.errors import BadInputError
from marconi_ext.results.folder import (
    ArmInfo,
    Percentiles,
    RequestRecord,
    ResultsFolder,
    RunInfo,
    ServerSnapshot,
    Status,
    Summary,
    Timing,
    TraceInfo,
    arm_folder,
    find_results,
)

ARM = ArmInfo(name="stock:max-states=3", folder=arm_folder("stock:max-states=3"))


def run_info() -> RunInfo:
    return RunInfo(
        created="2026-01-01T00:00:00Z",
        title="agent",
        provenance={"seed": 0},
        trace=TraceInfo(source="synthetic:agent", requests=2, sessions=1, prompt_tokens=30, digest="0"),
        timing=Timing(loop="closed", concurrency=4),
        arms=[ARM],
        repeats=1,
        order=[(ARM.name, 0)],
    )


def summary() -> Summary:
    times = Percentiles(n=1, p5=0.1, p50=0.1, p95=0.1, p99=0.1, mean=0.1, max=0.1)
    numbers = dict.fromkeys(
        ("retries", "retried_requests", "token_counts_differ", "output_tokens", "most_open"), 1
    )
    rates = dict.fromkeys(
        ("hit_rate", "ideal_hit_rate", "state_limited_loss", "first_divergence", "avoidable"), 1.5
    )
    spans = dict.fromkeys(("ttft_s", "itl_s", "request_s", "held_s", "late_s", "loop_lag_s"), times)
    speeds = dict.fromkeys(("duration_s", "requests_per_s", "prompt_tokens_per_s", "output_tokens_per_s"), 2)
    return Summary(
        requests=2,
        answered=1,
        by_status={Status.OK: 1, Status.TIMEOUT: 1},
        prompt_tokens=30,
        cached_tokens=None,
        ideal_tokens=9,
        state_tokens=8,
        **numbers,
        **rates,
        **spans,
        **speeds,
    )


def test_all_files_are_read_back_as_written(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path / "results")
    folder.write_run(run_info())
    repeat = folder.repeat(ARM, 0)
    records = [
        RequestRecord(
            session_id="a", turn=0, status=Status.OK, itl_s=[0.25], cached_tokens=5, ideal_tokens=9
        ),
        RequestRecord(session_id="a", turn=1, status=Status.UNSENT, error="the turn before failed"),
    ]
    repeat.append(records[:1])
    snapshot = ServerSnapshot(at_s=1.0, marconi={"slots": {"free": 3}}, metrics={"x": 1.0})
    repeat.append([records[1], snapshot])
    assert folder.repeats(ARM) == []  # not played to its summary yet
    repeat.write_summary(summary())
    assert folder.run() == run_info()
    assert list(repeat.requests()) == records
    assert [s.at_s for s in repeat.snapshots()] == [1.0]
    assert [r.path for r in folder.repeats(ARM)] == [repeat.path] and repeat.summary() == summary()
    repeat.write_requests(records[:1])
    assert list(repeat.requests()) == records[:1]
    assert [f.path for f in find_results(tmp_path)] == [f.path for f in find_results(folder.path)]


def test_derived_times_and_tokens() -> None:
    record = RequestRecord(
        session_id="a",
        turn=0,
        status=Status.OK,
        due_s=1.0,
        ready_s=2.0,
        sent_s=2.5,
        cached_tokens=5,
        ideal_tokens=9,
    )
    assert (record.held_s, record.late_s, record.lost_tokens) == (0.5, 1.5, 4)
    assert RequestRecord(session_id="a", turn=0, status=Status.UNSENT).held_s is None


def test_a_cut_line_is_left_out_and_a_broken_one_named(tmp_path: Path) -> None:
    repeat = ResultsFolder(tmp_path).repeat(ARM, 0)
    repeat.append([RequestRecord(session_id="a", turn=0, status=Status.OK)])
    file = repeat.path / "requests.jsonl"
    file.write_text(file.read_text() + '{"session_id": "a", "tu')
    assert len(list(repeat.requests())) == 1
    file.write_text(file.read_text() + "\n")
    with pytest.raises(BadInputError, match=r"requests.jsonl:2: not JSON"):
        list(repeat.requests())


def test_other_versions_and_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="not a results folder"):
        find_results(tmp_path)
    raw = run_info().model_dump(mode="json") | {"schema_version": 99}
    (tmp_path / "run.json").write_text(json.dumps(raw))
    with pytest.raises(BadInputError, match="schema_version 99"):
        ResultsFolder(tmp_path).run()
    (tmp_path / "run.json").write_text(json.dumps(raw | {"schema_version": 1, "repeats": "many"}))
    with pytest.raises(BadInputError, match=r"run.json: repeats: "):
        ResultsFolder(tmp_path).run()


def test_folder_names_are_safe() -> None:
    assert arm_folder("stock:max-states=3") == "stock_max-states=3"
    assert arm_folder("../marconi:flag.x=/a b") == "marconi_flag.x=_a_b"
