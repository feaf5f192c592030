"""A log of messages written as a chat template would have written it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from marconi_ext.cli import app
from marconi_ext.errors import BadInputError
from marconi_ext.results.patterns import Sessions
from marconi_ext.traces.chat_template import MARKERS
from marconi_ext.traces.read import read_trace
from marconi_ext.traces.templated import FIRST_MARKER

THINK, START = (FIRST_MARKER + MARKERS.index(marker) for marker in ("<think>", "<|im_start|>"))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Three turns; the second calls a tool first. One answer has its thoughts."""
    arguments = {"type": "function", "function": {"name": "look", "arguments": '{"where": "here"}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "A zebra.", "reasoning_content": "It has stripes."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": None, "tool_calls": [arguments]},
        {"role": "tool", "content": "stripes"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Thanks."},
        {"role": "assistant", "content": "Welcome."},
    ]
    path = tmp_path / "talk.jsonl"
    path.write_text(
        json.dumps({"session_id": "talk", "messages": messages, "tools": [{"name": "look"}]}) + "\n"
    )
    return path


def patterns(path: Path, template: str) -> dict[str, int]:
    found = Sessions()
    for request in read_trace(path, template=template):
        found.add(request)
    return {name: count for name, count in found.requests.items() if count}


def test_a_log_gets_the_patterns_of_its_template(log: Path) -> None:
    assert patterns(log, "qwen3.5") == {"kept": 1, "input-end": 1, "loop": 1}
    assert patterns(log, "nemotron-3") == {"kept": 1, "input-end": 1, "loop": 1}
    assert patterns(log, "qwen3-off") == {"input-end": 3}
    assert patterns(log, "plain") == {"kept": 2, "input-end": 1}  # two line breaks are another token than one


def test_thoughts_are_the_log_s_or_drawn_and_the_same_each_time(log: Path) -> None:
    first, again = list(read_trace(log, template="qwen3.5")), list(read_trace(log, template="qwen3.5"))
    assert len(first) == 4
    assert all(np.array_equal(a.output_ids, b.output_ids) for a, b in zip(first, again, strict=True))
    lengths = [len(request.output_ids) for request in first]
    assert (
        lengths[0] < 20 < min(lengths[1:])
    )  # "It has stripes." and its answer; words are drawn for the others
    assert all((request.input_ids == START).sum() for request in first)
    assert [int((request.input_ids == THINK).sum()) for request in first] == [1, 1, 2, 1]


def test_convert_writes_it_and_info_tells_of_it(log: Path, tmp_path: Path) -> None:
    out, runner = tmp_path / "out.jsonl", CliRunner()
    assert runner.invoke(app, ["trace", "convert", str(log), str(out), "--template", "glm"]).exit_code == 0
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [len(record["input_tokens"]) for record in written] == [
        len(request.input_ids) for request in read_trace(log, template="glm")
    ]
    told = runner.invoke(app, ["trace", "info", str(out)])
    assert "leaves near an older one's end (d)" in told.output


def test_what_can_t_be_written_is_refused(log: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="--template gpt-2: not one of qwen3,"):
        list(read_trace(log, template="gpt-2"))
    flat = tmp_path / "flat.jsonl"
    flat.write_text('{"session_id": "a", "turn_id": 0, "ts": 0, "input_tokens": [1], "output_tokens": [2]}\n')
    with pytest.raises(BadInputError, match=r"--template plain: .* is marconi, which has no messages"):
        read_trace(flat, template="plain")
