"""Benchmarks' one schema: rows of a table become records, and files of them."""

import csv
import json
from dataclasses import fields
from pathlib import Path

import pytest
from records import Record, record, records_of, unit_of, write

ROWS = [
    {"slots": 8, "policy": "lru", "hit_percent": 10.5, "ttft_ms": [1.0, 2.0, 9.0], "note": "text"},
    {"slots": 8, "policy": "gittins", "hit_percent": 87.0, "ttft_ms": [1.0], "calls": {"cut": 3}},
]


def test_each_number_of_a_row_is_a_record() -> None:
    found = records_of(ROWS, bench="loop", case=("slots",), provider="policy", seed=4)
    told = [(r.case, r.provider, r.metric, r.unit, r.p50, r.n) for r in found]
    assert told == [
        ("8", "lru", "hit_percent", "percent", 10.5, 1),
        ("8", "lru", "ttft_ms", "ms", 2.0, 3),
        ("8", "gittins", "hit_percent", "percent", 87.0, 1),
        ("8", "gittins", "ttft_ms", "ms", 1.0, 1),
        ("8", "gittins", "calls.cut", "", 3.0, 1),
    ]
    assert all(r.seed == 4 and r.bench == "loop" and r.versions["python"] for r in found)


def test_without_a_provider_each_column_is_one() -> None:
    (one, two) = records_of([{"slots": 8, "lru": 1, "gittins": 2}], bench="loop", case=("slots",))
    assert (one.provider, one.metric, two.provider) == ("lru", "loop", "gittins")


@pytest.mark.parametrize(
    ("metric", "unit"), [("ttft_ms", "ms"), ("tokens", "tokens"), ("hits", ""), ("a.b_s", "s")]
)
def test_units_are_in_names(metric: str, unit: str) -> None:
    assert unit_of(metric) == unit


def test_both_files_hold_the_whole_schema(tmp_path: Path) -> None:
    made = [
        record(
            [3.0, 1.0, 2.0], bench="b", case="c", provider="p", metric="m", unit="s", seed=0, config={"x": 1}
        )
    ]
    for name in ("out.json", "out.csv"):
        write(made, tmp_path / name)
    (as_json,) = json.loads((tmp_path / "out.json").read_text())
    (as_csv,) = csv.DictReader((tmp_path / "out.csv").open())
    assert set(as_json) == set(as_csv) == {field.name for field in fields(Record)}
    assert (as_json["p50"], float(as_csv["p20"])) == (2.0, pytest.approx(1.4))
    assert json.loads(as_csv["config"]) == {"x": 1}
