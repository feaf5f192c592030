"""Trajectories that coding agents write: SWE-agent's and OpenHands'."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from marconi_ext.traces import fields
from marconi_ext.traces.chat import Message, compact, content_text, parse_message
from marconi_ext.traces.problems import Problems
from marconi_ext.traces.sessions import linear_session, record_name, sessions_of
from marconi_ext.traces.text import TextTokenizer
from marconi_ext.traces.timeline import Session

UNSEEN = {  # OpenHands' events that no model reads
    "ConversationStateUpdateEvent",
    "ConversationStateEvent",
    "PauseEvent",
    "agent_state_changed",
    "change_agent_state",
    "null",
    "recall",
}


def read_swe_agent(path: Path, problems: Problems, tokenizer: TextTokenizer) -> Iterator[Session]:
    """One run a record (a `.traj` file): {history: [{role, content, tool_calls?}]}."""

    def build(number: int, record: dict) -> Session:
        messages = [parse_message(value) for value in fields.listing(record, "history")]
        return linear_session(record_name(record, f"{path.stem}/{number}"), messages, tokenizer)

    return sessions_of(path, problems, build)


def read_openhands(path: Path, problems: Problems, tokenizer: TextTokenizer) -> Iterator[Session]:
    """One run a record: {history: [event]} or {history: [[action, observation]]}, both generations of events."""

    def build(number: int, record: dict) -> Session:
        events = [event for item in fields.listing(record, "history") for event in _flat(item)]
        seen = [(event, message) for event in events if (message := event_message(event)) is not None]
        messages = [message for _, message in seen]
        answered = [time_s(event) for event, message in seen if message.role == "assistant"]
        times_s = [time for time in answered if time is not None]
        name = record_name(record, f"{path.stem}/{number}")
        return linear_session(name, messages, tokenizer, times_s if len(times_s) == len(answered) else None)

    return sessions_of(path, problems, build)


def is_event(value: dict) -> bool:
    """Whether an object is an event of OpenHands."""
    return any(key in value for key in ("action", "observation", "kind"))


def event_message(event: dict) -> Message | None:
    """What the model reads of an event, or wrote as one; None for events that it never sees.

    First generation: {action, args, source} and {observation, content}. Second: {kind, source, …}.
    Raises BrokenRecordError for an event of neither.
    """
    kind = event.get("kind") or event.get("action") or event.get("observation")
    if kind in UNSEEN:
        return None
    match kind:
        case "SystemPromptEvent":
            prompt = event.get("system_prompt")
            return Message("system", content_text([prompt] if isinstance(prompt, dict) else prompt))
        case "MessageEvent":
            return parse_message(fields.need(event, "llm_message"))
        case "ActionEvent":
            thought = content_text(event.get("thought"))
            return Message("assistant", thought + compact(event.get("tool_call") or event.get("action")))
        case "ObservationEvent" | "AgentErrorEvent":
            seen = event.get("observation", event.get("error"))
            return Message("tool", seen if isinstance(seen, str) else compact(seen))
    if "observation" in event:
        return Message("tool", content_text(event.get("content")))
    if "action" in event:
        return _action_message(event)
    raise fields.BrokenRecordError(f"history: no event of OpenHands: {fields.short(event)}")


def _action_message(event: dict) -> Message:
    args = event.get("args")
    args = args if isinstance(args, dict) else {}
    if event["action"] in ("message", "system"):
        role = (
            "system"
            if event["action"] == "system"
            else "user"
            if event.get("source") == "user"
            else "assistant"
        )
        return Message(role, content_text(args.get("content")))
    thought = args.get("thought")
    call = {"name": event["action"], "arguments": {k: v for k, v in args.items() if k != "thought"}}
    return Message("assistant", (thought if isinstance(thought, str) else "") + compact(call))


def time_s(event: dict) -> float | None:
    """Unix seconds of an event's ISO time, None where it has none."""
    try:
        return datetime.fromisoformat(event["timestamp"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return None


def _flat(item: Any) -> list[dict]:
    events = item if isinstance(item, list) else [item]
    if not all(isinstance(event, dict) for event in events):
        raise fields.BrokenRecordError(f"history: expected events, found {fields.short(item)}")
    return events
