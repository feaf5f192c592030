"""Whatever a file holds, reading it ends in requests, reported problems or a TraceError, never otherwise."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marconi_ext.traces import FORMATS, Request, TraceError, read_trace

FIELDS = [
    "session_id turn_id ts input_tokens output_tokens timestamp input_length output_length hash_ids",
    "messages role content call created tool_calls traj history user bot input output examples target",
    "tree children description expand_num observation answer_generation function query train_messages",
    "conversations from value messages_display tools",
]
NAMES = " ".join(FIELDS).split()
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["user", "assistant", "x", "\ud83d"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=15,
)
records = st.dictionaries(st.sampled_from(NAMES), values, max_size=8)
quick = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_safely(path: Path, format: str) -> None:
    for strict in (False, True):
        try:
            for request in read_trace(path, format=format, strict=strict, on_problem=lambda p: None):
                assert isinstance(request, Request) and len(request.input_ids)
        except TraceError as error:
            assert str(error)


@quick
@given(st.lists(records, max_size=4), st.sampled_from(FORMATS))
def test_any_json_lines(tmp_path: Path, lines: list[dict], format: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    read_safely(path, format)


@quick
@given(values, st.sampled_from(FORMATS))
def test_any_json_document(tmp_path: Path, value, format: str) -> None:
    path = tmp_path / "bbh" / "t.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=1))
    read_safely(path, format)


@quick
@given(st.binary(max_size=200), st.booleans(), st.sampled_from(FORMATS))
def test_any_bytes(tmp_path: Path, content: bytes, packed: bool, format: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(gzip.compress(content)[:-3] if packed else content)
    read_safely(path, format)


GOOD = (
    json.dumps({"session_id": 1, "turn_id": 0, "ts": 1, "input_tokens": [1, 2], "output_tokens": [3]}) + "\n"
)


@quick
@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=3))
def test_a_damaged_line_leaves_its_neighbours(tmp_path: Path, at: int, junk: bytes) -> None:
    path = tmp_path / "t.jsonl"
    damaged = GOOD.encode()[:at] + junk.replace(b"\n", b"?") + GOOD.encode()[at + 1 :]
    path.write_bytes(GOOD.encode() + damaged.rstrip(b"\n") + b"\n" + GOOD.encode())
    assert len(list(read_trace(path, on_problem=lambda p: None))) in (2, 3)


def test_deep_nesting_is_a_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(GOOD + "[" * 200_000 + "\n" + GOOD)
    assert len(list(read_trace(path, on_problem=lambda p: None))) == 2


@pytest.mark.parametrize("name", ["mini_swe_agent", "tau_bench", "bbh_fewshot", "toolbench_dfs", "mooncake"])
def test_real_traces_read_without_a_problem(name: str) -> None:
    import os

    folder = Path(os.environ.get("MARCONI_TRACES", "")) / name
    if not os.environ.get("MARCONI_TRACES") or not folder.is_dir():
        pytest.skip("MARCONI_TRACES names no folder with this trace")
    problems = []
    assert sum(1 for _ in read_trace(folder, limit=500, on_problem=problems.append)) >= 300
    assert not problems
