"""Linear conversations: OpenAI-style messages (mini-SWE-agent's too), tau-bench, MT-Bench-101, ShareGPT."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from marconi_ext.traces import fields
from marconi_ext.traces.chat import Message, compact, content_text, parse_message
from marconi_ext.traces.files import json_records
from marconi_ext.traces.problems import Problems
from marconi_ext.traces.templated import calls_of
from marconi_ext.traces.text import TextTokenizer
from marconi_ext.traces.timeline import Session

NAMES = ("session_id", "conversation_id", "instance_id", "id")  # where a record may say who it is


def sessions_of(path: Path, problems: Problems, build: Callable[[int, dict], Session]) -> Iterator[Session]:
    """One session a record. build: number and record → session; its BrokenRecordError skips the record, and is told."""
    for number, record in json_records(path, problems):
        try:
            yield build(number, record)
        except fields.BrokenRecordError as error:
            problems.add(str(path), number, str(error))


def read_messages(path: Path, problems: Problems, tokenizer: TextTokenizer) -> Iterator[Session]:
    """One conversation a record: {messages: [{role, content, call?: {created}}], tools?, session_id?}."""

    def build(number: int, record: dict) -> Session:
        return messages_session(record, record_name(record, f"{path.stem}/{number}"), tokenizer)

    return sessions_of(path, problems, build)


def read_mt_bench(path: Path, problems: Problems, tokenizer: TextTokenizer) -> Iterator[Session]:
    """One dialogue a record: {history: [{user, bot}]}."""

    def build(number: int, record: dict) -> Session:
        messages = []
        for turn in fields.listing(record, "history"):
            if not isinstance(turn, dict):
                raise fields.BrokenRecordError(f"history: expected objects, found {fields.short(turn)}")
            messages.append(Message("user", fields.text(turn, "user")))
            messages.append(Message("assistant", fields.text(turn, "bot")))
        return linear_session(f"{path.stem}/{number}", messages, tokenizer)

    return sessions_of(path, problems, build)


def read_sharegpt(path: Path, problems: Problems, tokenizer: TextTokenizer) -> Iterator[Session]:
    """One conversation a record: {conversations: [{from, value}]}."""

    def build(number: int, record: dict) -> Session:
        turns = fields.listing(record, "conversations")
        messages = [
            parse_message({"role": t.get("from"), "content": t.get("value")} if isinstance(t, dict) else t)
            for t in turns
        ]
        return linear_session(record_name(record, f"{path.stem}/{number}"), messages, tokenizer)

    return sessions_of(path, problems, build)


def read_tau_bench(path: Path, problems: Problems, tokenizer: TextTokenizer) -> Iterator[Session]:
    """One task a record: {task_id, trial, traj: [messages]}."""
    for number, record in json_records(path, problems):
        try:
            record = {
                "messages": fields.need(record, "traj"),
                **{k: record[k] for k in record if k != "traj"},
            }
            name = f"task{record.get('task_id', number)}/trial{record.get('trial', 0)}"
            yield messages_session(record, name, tokenizer)
        except fields.BrokenRecordError as error:
            problems.add(str(path), number, f"record {number}: {error}")


def record_name(record: dict, default: str) -> str:
    """The record's own name where it has one."""
    for key in NAMES:
        if isinstance(record.get(key), str | int):
            return str(record[key])
    return default


def messages_session(record: dict, name: str, tokenizer: TextTokenizer) -> Session:
    """A session from a record's `messages`, with its `tools` before them. Raises BrokenRecordError."""
    raw = fields.listing(record, "messages")
    messages = [parse_message(value) for value in raw]
    if record.get("tools"):
        messages.insert(0, Message("system", compact(record["tools"])))
    return linear_session(name, messages, tokenizer, call_times_s(raw))


def call_times_s(raw: list[dict]) -> list[float] | None:
    """Times of the assistant messages from their `call.created` (Unix s); None where one lacks it."""
    calls = [value.get("call") for value in raw if value.get("role") == "assistant"]
    timed = [call for call in calls if isinstance(call, dict) and "created" in call]
    return [fields.number(call, "created") for call in timed] if calls and len(timed) == len(calls) else None


def linear_session(
    name: str, messages: list[Message], tokenizer: TextTokenizer, times_s: list[float] | None = None
) -> Session:
    """A session whose prompts are prefixes of one conversation. BrokenRecordError if nobody answers."""
    turns = sum(message.role == "assistant" for message in messages)
    if not turns:
        raise fields.BrokenRecordError("no assistant message, so no request")
    return Session(name, turns, lambda: calls_of(name, messages, tokenizer), times_s)


def display_messages(value: Any) -> list[Message]:
    """Messages out of a flattened conversation: lines that start with `role: ` open a new message."""
    messages: list[Message] = []
    for line in content_text(value).split("\n"):
        role, colon, rest = line.partition(": ")
        if colon and role in ("user", "assistant", "tool", "system"):
            messages.append(Message(role, rest))
        elif messages:
            last = messages[-1]
            messages[-1] = Message(last.role, f"{last.text}\n{line}")
    return messages


def read_display(path: Path, problems: Problems, tokenizer: TextTokenizer) -> Iterator[Session]:
    """tau-bench's few-shot files: {messages_display: 'user: …\\nassistant: …'} a line."""

    def build(number: int, record: dict) -> Session:
        messages = display_messages(fields.text(record, "messages_display"))
        return linear_session(f"{path.stem}/{number}", messages, tokenizer)

    return sessions_of(path, problems, build)
