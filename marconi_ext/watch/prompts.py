"""Prompts that a command takes from a file: token ids, a text, or chat messages, each with its cache namespace.

A file of JSON lines has one prompt a line; any other text file is one prompt. Texts and messages become token ids by
the server's own tokenizer and chat template, so that they are what its clients will send.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from marconi_ext.errors import BadInputError

PROBES = ("0 probe", "? other")  # what a user might say after a prefix: two texts that share no beginning
_FIELDS = {
    "input_ids",
    "text",
    "messages",
    "tools",
    "extra_key",
    "cache_salt",
    "chat_template_kwargs",
    "name",
}


class Tokenizing(Protocol):
    """What turns texts into token ids; `WatchedServer` is one."""

    def tokens_of(self, body: dict[str, Any]) -> list[int]:
        """Of a body of /tokenize."""


@dataclass(frozen=True)
class Prompt:
    """One prompt as it was given. where: file and line, for messages"""

    where: str
    fields: dict[str, Any]

    @property
    def name(self) -> str:
        """What to call it in tables."""
        return str(self.fields.get("name", self.where))

    @property
    def namespace(self) -> dict[str, str]:
        """`extra_key` and `cache_salt`, where they are given."""
        return {key: self.fields[key] for key in ("extra_key", "cache_salt") if self.fields.get(key)}

    def tokens(self, tokenizer: Tokenizing, *, as_prefix: bool = False) -> list[int]:
        """Token ids. as_prefix: of chat messages only what any next user message would leave as it is."""
        fields = self.fields
        if "input_ids" in fields:
            return fields["input_ids"]
        if "text" in fields:
            return tokenizer.tokens_of({"prompt": fields["text"]})
        if not as_prefix:
            return tokenizer.tokens_of(self._chat(fields["messages"]))
        one, other = (
            tokenizer.tokens_of(self._chat([*fields["messages"], {"role": "user", "content": probe}]))
            for probe in PROBES
        )
        common = next(
            (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
        )
        return one[:common]

    def _chat(self, messages: list[Any]) -> dict[str, Any]:
        given = ("tools", "chat_template_kwargs")
        return {"messages": messages, **{key: self.fields[key] for key in given if key in self.fields}}


def read_prompts(path: Path) -> list[Prompt]:
    """All prompts of a file (`-`: stdin). Raises BadInputError, naming the line."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
    if not text.strip():
        raise BadInputError(f"{path}: holds no prompt")
    if not text.lstrip().startswith("{"):
        return [Prompt(path.name, {"text": text})]
    lines = enumerate(text.splitlines(), 1)
    return [_parse(line, f"{path.name}:{number}") for number, line in lines if line.strip()]


def _parse(line: str, where: str) -> Prompt:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise BadInputError(f"{where}: no JSON: {error}") from None
    if not isinstance(fields, dict) or sum(key in fields for key in ("input_ids", "text", "messages")) != 1:
        raise BadInputError(f"{where}: want an object with one of input_ids, text, messages")
    unknown = sorted(set(fields) - _FIELDS)
    if unknown:
        raise BadInputError(f"{where}: unknown field {unknown[0]!r}; known: {', '.join(sorted(_FIELDS))}")
    ids = fields.get("input_ids", [0])
    if not isinstance(ids, list) or not ids or not all(type(t) is int and t >= 0 for t in ids):
        raise BadInputError(f"{where}: input_ids: want a list of at least one token id")
    if not isinstance(fields.get("text", "x"), str) or not fields.get("text", "x"):
        raise BadInputError(f"{where}: text: want a text that isn't empty")
    if not isinstance(fields.get("messages", [{}]), list) or not fields.get("messages", [{}]):
        raise BadInputError(f"{where}: messages: want a list of chat messages")
    return Prompt(where, fields)
