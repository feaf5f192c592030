"""Traces that others write: read whole, or said what was left out and why."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from marconi_ext.traces import TraceError, read_trace
from marconi_ext.traces.chat import content_text
from marconi_ext.traces.mooncake import block_size
from marconi_ext.traces.read import sniff
from marconi_ext.traces.text import load_tokenizer

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def write(path: Path, value, indent: int | None = None) -> Path:
    path.write_text(json.dumps(value, indent=indent))
    return path


def holds(tokens: np.ndarray, text: str) -> bool:
    wanted = load_tokenizer("tekken").encode(text)
    windows = np.lib.stride_tricks.sliding_window_view(tokens, len(wanted))
    return bool((windows == wanted).all(axis=1).any())


@pytest.mark.parametrize("indent", [None, 1])
def test_lists_and_single_objects_are_read_as_lines_are(tmp_path: Path, indent: int | None) -> None:
    one, more = {"session_id": "x", "messages": CHAT}, {"session_id": "y", "messages": CHAT}
    assert [r.session_id for r in read_trace(write(tmp_path / "one.json", one, indent))] == ["x"]
    found = read_trace(write(tmp_path / "list.json", [one, 4, more], indent), on_problem=lambda p: None)
    assert sorted(r.session_id for r in found) == ["x", "y"]
    line = {"session_id": "x", "turn_id": 0, "ts": 0, "input_tokens": [1], "output_tokens": []}
    assert len(list(read_trace(write(tmp_path / "tokens.json", [line, line], indent)))) == 2


def test_tool_parts_of_a_message_are_kept() -> None:
    parts = [
        {"type": "thinking", "thinking": "hm "},
        {"type": "text", "text": "Look: "},
        {"type": "tool_use", "id": "1", "name": "ls", "input": {"path": "/"}},
        {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "etc"}]},
    ]
    assert content_text(parts) == 'hm Look: {"name":"ls","input":{"path":"/"}}etc'
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    other = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAB"}}
    assert content_text([image]) == content_text([image]) != content_text([other])
    assert len(content_text([image])) < 40


def test_a_session_without_times_is_kept_and_told_of(tmp_path: Path) -> None:
    def timed(name: str, created: int | None) -> dict:
        answer = {"role": "assistant", "content": "a"} | ({"call": {"created": created}} if created else {})
        return {"session_id": name, "messages": [CHAT[0], answer]}

    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join(json.dumps(timed(*one)) for one in [("a", 100), ("b", None), ("c", 200)]))
    problems = []
    found = {r.session_id: r.arrival_s for r in read_trace(path, on_problem=problems.append)}
    assert found.keys() == {"a", "b", "c"} and 0 <= found["b"] <= found["c"] == 100
    assert ["session b" in problem.message for problem in problems] == [True]


@pytest.mark.parametrize("size", [16, 64, 512])
def test_block_size_is_told_by_the_records(tmp_path: Path, size: int) -> None:
    def record(length: int) -> dict:
        ids = list(range(-(-length // size)))
        return {"timestamp": 0, "input_length": length, "output_length": 1, "hash_ids": ids}

    path = tmp_path / "blocks.jsonl"
    path.write_text("\n".join(json.dumps(record(n)) for n in (5 * size + 1, 3 * size, 9 * size - 1)))
    assert block_size(path) == size
    first, second, _ = read_trace(path)
    assert len(first.input_ids) == 5 * size + 1
    assert np.array_equal(first.input_ids[: 3 * size], second.input_ids)
    path.write_text(json.dumps(record(64) | {"block_size": 8}))
    assert block_size(path) == 8


def test_what_a_folder_holds_besides_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.json", {"messages": CHAT})
    write(tmp_path / "b.json", {"conversations": [{"from": "human", "value": "q"}]})
    problems = []
    assert len(list(read_trace(tmp_path, on_problem=problems.append))) == 1
    assert "is sharegpt, not messages" in problems[0].message and problems[0].path.endswith("b.json")


def test_a_foreign_file_is_told_what_was_found_and_expected(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"fields colour, size; known are marconi \(input_tokens, output"):
        read_trace(write(tmp_path / "x.json", {"size": 1, "colour": "red"}))


def test_standard_input(monkeypatch) -> None:
    class Stdin:
        buffer = io.BytesIO(json.dumps({"messages": CHAT}).encode())

    monkeypatch.setattr("sys.stdin", Stdin)
    assert len(list(read_trace("-"))) == 1


def test_swe_agent_trajectory(tmp_path: Path) -> None:
    history = [{"role": "system", "content": "s", "agent": "main"}, *CHAT, *CHAT]
    path = write(tmp_path / "run.traj", {"trajectory": [], "history": history, "info": {}}, indent=1)
    assert sniff(path) == "swe_agent"
    first, second = read_trace(tmp_path)
    assert np.array_equal(second.input_ids[: len(first.input_ids)], first.input_ids)


def test_openhands_runs_of_both_generations(tmp_path: Path) -> None:
    old = [
        {
            "source": "user",
            "action": "message",
            "args": {"content": "fix it"},
            "timestamp": "2025-01-01T00:00:00",
        },
        {"source": "agent", "action": "recall", "args": {}},
        {
            "source": "agent",
            "action": "run",
            "args": {"command": "ls", "thought": "look"},
            "timestamp": "2025-01-01T00:00:05",
        },
        {"observation": "run", "content": "setup.py"},
        {
            "source": "agent",
            "action": "finish",
            "args": {"outputs": {}},
            "timestamp": "2025-01-01T00:00:09",
        },
    ]
    new = [
        {"kind": "SystemPromptEvent", "system_prompt": {"type": "text", "text": "be good"}},
        {
            "kind": "MessageEvent",
            "llm_message": {"role": "user", "content": [{"type": "text", "text": "fix"}]},
        },
        {"kind": "ConversationStateUpdateEvent"},
        {
            "kind": "ActionEvent",
            "thought": [{"type": "text", "text": "look"}],
            "tool_call": {"name": "terminal", "arguments": "{}"},
        },
        {"kind": "ObservationEvent", "observation": {"content": "setup.py"}},
    ]
    path = tmp_path / "output.jsonl"
    path.write_text(
        "\n".join(json.dumps({"instance_id": n, "history": h}) for n, h in (("o", old), ("n", new)))
    )
    assert sniff(path) == "openhands"
    found = list(read_trace(path, on_problem=lambda p: None))
    assert sorted((r.session_id, r.turn) for r in found) == [("n", 0), ("o", 0), ("o", 1)]
    last = next(r for r in found if (r.session_id, r.turn) == ("o", 1))
    assert holds(last.input_ids, "look") and holds(last.input_ids, "setup.py")
    assert last.arrival_s - next(r for r in found if (r.session_id, r.turn) == ("o", 0)).arrival_s == 4
    path.write_text(json.dumps({"history": [{"action": "x"}, {"neither": 1}]}))
    with pytest.raises(TraceError, match="no event of OpenHands"):
        list(read_trace(path, on_problem=lambda p: None))
