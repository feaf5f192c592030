"""Chat messages to token ids, message by message, so that equal histories give equal prefixes."""

import json
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np

from marconi_ext.traces.fields import BrokenRecordError, short
from marconi_ext.traces.request import token_array
from marconi_ext.traces.text import TextTokenizer

ROLE_NAMES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "function": "tool",
}


@dataclass(frozen=True)
class Message:
    """role: system, user, assistant or tool; text: what the model sees of it.

    spoken, reasoning, calls: what a chat template takes apart: the text without tool calls (None: all of it), the
    thoughts that the log has, and the tool calls (name, arguments as JSON)
    """

    role: str
    text: str
    spoken: str | None = None
    reasoning: str = ""
    calls: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Call:
    """One model call: its prompt, its answer and the prompt's message boundaries."""

    input_ids: np.ndarray
    output_ids: np.ndarray
    boundaries: tuple[int, ...] = ()


def parse_message(value: Any) -> Message:
    """Read one OpenAI-style message; tool calls become JSON text. Raises BrokenRecordError."""
    if not isinstance(value, dict):
        raise BrokenRecordError(f"messages: expected objects, found {short(value)}")
    role = value.get("role")
    if not isinstance(role, str) or role not in ROLE_NAMES:
        raise BrokenRecordError(f"role: expected one of {', '.join(ROLE_NAMES)}, found {short(role)}")
    content = content_text(value.get("content"))
    parts = [content, *(compact(value[key]) for key in ("tool_calls", "function_call") if value.get(key))]
    text = "\n".join(part for part in parts if part)
    return Message(ROLE_NAMES[role], text, content, _reasoning(value), _calls(value))


def _reasoning(value: dict) -> str:
    found = (value.get(key) for key in ("reasoning_content", "reasoning"))
    return next((text for text in found if isinstance(text, str)), "")


def _calls(value: dict) -> tuple[tuple[str, str], ...]:
    """Tool calls as far as they have OpenAI's form."""
    listed = value.get("tool_calls")
    functions = (
        [call.get("function") for call in listed if isinstance(call, dict)]
        if isinstance(listed, list)
        else []
    )
    found = []
    for function in [*functions, value.get("function_call")]:
        if isinstance(function, dict):
            arguments = function.get("arguments")
            text = arguments if isinstance(arguments, str) else compact(arguments)
            found.append((str(function.get("name")), text))
    return tuple(found)


def content_text(content: Any) -> str:
    """The text of a message's content: text, null, or a list of parts, each as a model sees it.

    OpenAI's and Anthropic's parts: text and reasoning as they are, a tool's result as its content, a tool's use as
    JSON of its name and input, anything else (an image, a file) as a short name that equal parts share.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return "".join(_part_text(part) for part in content)
    raise BrokenRecordError(f"content: expected text or a list of parts, found {short(content)}")


def _part_text(part: dict) -> str:
    for key in ("text", "thinking"):
        if key in part:
            if isinstance(part[key], str):
                return part[key]
            raise BrokenRecordError(f"content: {key}: expected text, found {short(part[key])}")
    match part.get("type"):
        case "tool_result":
            return content_text(part.get("content"))
        case "tool_use":
            return compact({key: part.get(key) for key in ("name", "input")})
    whole = compact(part).encode("utf-8", "surrogatepass")
    return f"[{part.get('type', 'part')} {crc32(whole):08x}]"


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def linear_calls(messages: list[Message], tokenizer: TextTokenizer) -> list[Call]:
    """One call for each assistant message: the prompt is all before it. Prompts are views of one array."""
    pieces: list[int] = list(tokenizer.start)
    ends: list[int] = []
    spans: list[tuple[int, int, int]] = []  # prompt end, answer end, messages before it
    for message in messages:
        before, after = tokenizer.frames[message.role]
        pieces += before
        prompt_end = len(pieces)
        pieces += tokenizer.encode(message.text)
        pieces += after
        if message.role == "assistant" and prompt_end:
            spans.append((prompt_end, len(pieces), len(ends)))
        ends.append(len(pieces))
    whole = token_array(pieces)
    return [Call(whole[:a], whole[a:b], tuple(ends[:n])) for a, b, n in spans]
