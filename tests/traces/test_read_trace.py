"""Every format is found by its fields, read in time order, and broken records are skipped or refused."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest

from marconi_ext.traces import Request, TraceError, read_trace


def write_lines(path: Path, *records) -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def marconi_line(session="a", turn=0, ts=0.0, prompt=(1, 2, 3), answer=(4,)) -> dict:
    return {
        "session_id": session,
        "turn_id": turn,
        "ts": ts,
        "input_tokens": list(prompt),
        "output_tokens": list(answer),
    }


def chat(*texts: str) -> list[dict]:
    """Messages that alternate between user and assistant."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_the_common_format_counts_from_its_first_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", marconi_line(ts=7.5), marconi_line("b", 1, 9.0, (5,), ()))
    first, second = read_trace(path)
    assert isinstance(first, Request)
    assert (first.session_id, first.turn, first.arrival_s) == ("a", 0, 0.0)
    assert first.input_ids.dtype == np.int32 and first.input_ids.tolist() == [1, 2, 3]
    assert (second.turn, second.arrival_s, second.output_ids.tolist()) == (1, 1.5, [])


def test_gzip_is_found_by_content_and_not_by_name(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(gzip.compress(json.dumps(marconi_line()).encode()))
    assert len(list(read_trace(path))) == 1


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("{nonsense", "not JSON"),
        ("[1, 2]", "expected an object"),
        (marconi_line(prompt=()), "input_tokens: empty"),
        (marconi_line(prompt=(1, -2)), "must lie in"),
        (marconi_line(prompt=(1, 2**31)), "must lie in"),
        (marconi_line(prompt=(1, 2.5)), "whole numbers"),
        (marconi_line(prompt=(1, True)), "whole numbers"),
        (marconi_line(ts="soon"), "ts: expected a number"),
        (marconi_line(ts=float("nan")), "finite"),
        (marconi_line(turn=-1), "turn_id"),
        ({"session_id": "a"}, "no field 'ts'"),
    ],
)
def test_broken_line_is_reported_with_its_number_or_refused(tmp_path: Path, broken, message: str) -> None:
    path = write_lines(tmp_path / "t.jsonl", marconi_line(), "", broken, marconi_line("b"))
    problems = []
    assert [r.session_id for r in read_trace(path, on_problem=problems.append)] == ["a", "b"]
    assert [p.line for p in problems] == [3]
    assert message in problems[0].message
    with pytest.raises(TraceError, match=r"t\.jsonl:3: "):
        list(read_trace(path, strict=True))


def test_invalid_utf8_and_a_cut_off_gzip_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    good = json.dumps(marconi_line()).encode() + b"\n"
    path.write_bytes(good + b'{"session_id": "\xff"}\n' + good)
    problems = []
    assert len(list(read_trace(path, on_problem=problems.append))) == 2
    assert problems[0].line == 2
    packed = gzip.compress(good * 2_000)
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    problems.clear()
    assert list(read_trace(tmp_path / "cut.jsonl.gz", on_problem=problems.append))
    assert problems[0].message == "ends early (truncated gzip)"


@pytest.mark.parametrize("format", ["auto", "marconi", "messages"])
def test_a_file_without_a_record_says_why(tmp_path: Path, format: str) -> None:
    packed = gzip.compress(json.dumps(marconi_line()).encode())
    for content, why in (
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (gzip.compress(b""), "is empty"),
        (packed[:12], "ends early (truncated gzip)"),
        (packed[:40], "ends early (truncated gzip)"),
    ):
        path = tmp_path / "t.jsonl.gz"
        path.write_bytes(content)
        with pytest.raises(TraceError, match=re.escape(f"{path}: {why}")):
            list(read_trace(path, format=format, on_problem=lambda problem: None))


def test_mooncake_blocks_expand_to_shared_deterministic_tokens(tmp_path: Path) -> None:
    record = {"timestamp": 1000, "input_length": 1000, "output_length": 7, "hash_ids": [0, 5]}
    other = {"timestamp": 3000, "input_length": 1030, "output_length": 2, "hash_ids": [0, 5, 6]}
    wrong = {"timestamp": 3000, "input_length": 1030, "output_length": 2, "hash_ids": [0, 5]}
    path = write_lines(tmp_path / "m.jsonl", record, wrong, other)
    problems = []
    first, second = read_trace(path, on_problem=problems.append)
    assert "3 blocks of 512" in problems[0].message
    assert (len(first.input_ids), len(first.output_ids), second.arrival_s) == (1000, 7, 2.0)
    assert np.array_equal(first.input_ids, second.input_ids[:1000])
    assert not np.array_equal(first.input_ids[:488], first.input_ids[512:])
    assert first.output_ids[:2].tolist() != second.output_ids.tolist()
    assert first.input_ids.min() >= 1_000 and first.input_ids.max() < 131_072


def test_messages_become_one_request_an_answer(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    record = {"session_id": "x", "messages": [system, *chat("Hi", "Hello", "More", "No")]}
    first, second = read_trace(write_lines(tmp_path / "c.jsonl", record))
    whole = np.concatenate([first.input_ids, first.output_ids])
    assert np.array_equal(second.input_ids[: len(whole)], whole)
    assert [first.turn, second.turn] == [0, 1] and second.arrival_s > first.arrival_s == 0.0
    assert first.boundaries[-1] == len(first.input_ids)
    assert second.boundaries[:2] == first.boundaries and second.boundaries[2] == len(whole)


def test_recorded_call_times_merge_sessions(tmp_path: Path) -> None:
    def timed(name: str, *created: int) -> dict:
        messages = chat(*"abcdef"[: 2 * len(created)])
        for message, time in zip(messages[1::2], created, strict=True):
            message["call"] = {"created": time}
        return {"instance_id": name, "messages": messages}

    path = write_lines(tmp_path / "s.jsonl", timed("late", 1010, 1020), timed("early", 1000, 1015, 1030))
    found = [(r.session_id, r.turn, r.arrival_s) for r in read_trace(path)]
    assert found == [("early", 0, 0), ("late", 0, 10), ("early", 1, 15), ("late", 1, 20), ("early", 2, 30)]


def test_drawn_arrivals_depend_on_the_seed_alone(tmp_path: Path) -> None:
    from marconi_ext.traces import Arrivals

    path = write_lines(
        tmp_path / "c.jsonl", *[{"messages": chat(f"q{i}", "a", "more", "b")} for i in range(9)]
    )

    def times(seed: int) -> list[tuple[str, float]]:
        return [(r.session_id, r.arrival_s) for r in read_trace(path, arrivals=Arrivals(seed))]

    assert times(1) == times(1) != times(2)
    assert [t for _, t in times(1)] == sorted(t for _, t in times(1))


def test_other_formats(tmp_path: Path) -> None:
    tau = tmp_path / "tau.json"
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    tool = {"role": "tool", "name": "f", "tool_call_id": "1", "content": "42"}
    tau.write_text(
        json.dumps([{"task_id": 3, "trial": 1, "traj": [*chat("q", "a", "r"), call, tool]}], indent=1)
    )
    assert [(r.session_id, r.turn) for r in read_trace(tau)] == [("task3/trial1", 0), ("task3/trial1", 1)]
    mt = write_lines(
        tmp_path / "mt.jsonl", {"history": [{"user": "u", "bot": "b"}, {"user": "v", "bot": "c"}]}
    )
    assert len(list(read_trace(mt))) == 2
    shared = write_lines(
        tmp_path / "sg.jsonl",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    )
    assert len(list(read_trace(shared))) == 1
    shots = write_lines(tmp_path / "d.jsonl", {"messages_display": "user: q\nassistant: a\nb\nuser: r"})
    (only,) = read_trace(shots)
    assert len(only.output_ids) > 2


def test_few_shot_folder_shares_each_tasks_prefix(tmp_path: Path) -> None:
    (tmp_path / "bbh").mkdir()
    (tmp_path / "cot-prompts").mkdir()
    examples = [{"input": f"What is {i}?", "target": str(i)} for i in range(3)]
    (tmp_path / "bbh" / "sums.json").write_text(json.dumps({"canary": "x", "examples": [*examples, 4]}))
    (tmp_path / "cot-prompts" / "sums.txt").write_text("canary\n-----\nQ: What is 1?\nA: one.\n")
    problems = []
    requests = list(read_trace(tmp_path, on_problem=problems.append))
    assert sorted(r.session_id for r in requests) == ["sums/1", "sums/2", "sums/3"]
    assert len(problems) == 1 and "example 4" in problems[0].message
    shots = requests[0].boundaries[0]
    assert all(np.array_equal(r.input_ids[:shots], requests[0].input_ids[:shots]) for r in requests)


def test_lmcache_puts_answers_where_none_were_kept(tmp_path: Path) -> None:
    def line(micros: int, asked: str, answer: str, session: str = "s") -> dict:
        return {"timestamp": micros, "session_id": session, "input": asked, "output": answer}

    rows = [line(2_000_000, "task\nobs1", "do B"), line(1_000_000, "task", "do A"), line(0, "", "x")]
    first, second = read_trace(write_lines(tmp_path / "l.jsonl", *rows))
    assert (first.arrival_s, second.arrival_s) == (0.0, 1.0)
    whole = np.concatenate([first.input_ids, first.output_ids])
    assert np.array_equal(second.input_ids[: len(whole)], whole)
    full = [line(1, "user: q", "a"), line(2, "user: q\nassistant: a\nuser: r", "b")]
    first, second = read_trace(write_lines(tmp_path / "f.jsonl", *full))
    assert np.array_equal(second.input_ids[: len(first.input_ids)], first.input_ids)


def test_toolbench_queries_go_back_to_older_nodes(tmp_path: Path) -> None:
    def node(text: str, number: int, *children: dict, seen: str = "") -> dict:
        return {"description": text, "expand_num": number, "observation": seen, "children": list(children)}

    left = node("call f", 0, node("{1}", 1, node("give up", 2), seen="failed"))
    right = node("thought", 0, node("call g", 3, seen="fine"))
    document = {
        "tree": {"tree": node("", 0, left, right)},
        "answer_generation": {"function": [{"name": "f"}], "query": "do it"},
    }
    path = tmp_path / "x.json"
    path.write_text(json.dumps(document))
    one, two, three = read_trace(path)
    start = len(one.input_ids)
    assert np.array_equal(two.input_ids[:start], one.input_ids)
    assert np.array_equal(three.input_ids[:start], one.input_ids)  # back at the root, with a hint behind it
    assert len(three.input_ids) > start and not np.array_equal(two.input_ids, three.input_ids)


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no trace file"):
        read_trace(tmp_path / "none.jsonl")
    with pytest.raises(TraceError, match="not one of"):
        read_trace(write_lines(tmp_path / "a.jsonl", marconi_line()), format="csv")
    with pytest.raises(TraceError, match="no known trace format"):
        read_trace(write_lines(tmp_path / "b.jsonl", {"colour": "red"}))
    with pytest.raises(TraceError, match="not one request"):
        list(read_trace(write_lines(tmp_path / "c.jsonl", marconi_line(prompt=()))))


def test_limit_and_folder_of_one_format(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", marconi_line(), marconi_line("b"))
    write_lines(tmp_path / "b.jsonl", marconi_line("c"))
    (tmp_path / "README.json").write_text("{}")
    assert [r.session_id for r in read_trace(tmp_path)] == ["a", "b", "c"]
    assert len(list(read_trace(tmp_path, limit=2))) == 2
