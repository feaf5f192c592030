"""LMCache's agent traces: {timestamp (µs), session_id, input, output} a line, prompts as flat text."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from marconi_ext.traces import fields
from marconi_ext.traces.chat import Call, Message
from marconi_ext.traces.files import json_records
from marconi_ext.traces.problems import Problems
from marconi_ext.traces.sessions import display_messages
from marconi_ext.traces.templated import calls_of, single_call
from marconi_ext.traces.text import TextTokenizer
from marconi_ext.traces.timeline import Session


@dataclass(frozen=True)
class Line:
    time_s: float
    asked: str
    answer: str


def read(paths: list[Path], problems: Problems, tokenizer: TextTokenizer) -> Iterator[Session]:
    """One session for each session_id; lines are sorted by time, those with an empty input dropped."""
    lines: dict[str, list[Line]] = {}
    for path in paths:
        for number, record in json_records(path, problems):
            try:
                name = fields.identifier(record, "session_id")
                time_s = fields.number(record, "timestamp") / 1e6
                found = Line(time_s, fields.text(record, "input"), fields.text(record, "output"))
            except fields.BrokenRecordError as error:
                problems.add(str(path), number, str(error))
                continue
            if found.asked:
                lines.setdefault(name, []).append(found)
    for name, own in lines.items():
        own.sort(key=lambda line: line.time_s)
        messages = user_side_messages(own)
        times_s = [line.time_s for line in own]
        if messages:
            yield Session(name, len(own), partial(calls_of, name, messages, tokenizer), times_s)
        else:
            yield Session(name, len(own), partial(_flat_calls, own, tokenizer), times_s)


def user_side_messages(lines: list[Line]) -> list[Message] | None:
    """The conversation, where the inputs hold the user's side only (mini-SWE-agent's lines do).

    That is so where every input extends the one before and the answers aren't in what it adds; the true
    prompt has answer i before the text that input i + 1 adds. None for any other session.
    """
    messages: list[Message] = []
    before = ""
    for line, previous in zip(lines, [None, *lines], strict=False):
        if not line.asked.startswith(before) or line.asked == before:
            return None
        added = line.asked[len(before) :]
        if previous and previous.answer and previous.answer.strip() in added:
            return None
        messages += [Message("user", added), Message("assistant", line.answer)]
        before = line.asked
    return messages if len(lines) > 1 else None


def _flat_calls(lines: list[Line], tokenizer: TextTokenizer) -> list[Call]:
    return [_flat_call(line, tokenizer) for line in lines]


def _flat_call(line: Line, tokenizer: TextTokenizer) -> Call:
    """The prompt as recorded: a conversation flattened to `role: text` lines, or else one text."""
    messages = display_messages(line.asked) or [Message("user", line.asked)]
    return single_call(messages, line.answer, tokenizer)
