"""Where a prompt's messages begin, told from its token ids: conversations part there more often than elsewhere.

A chat template puts a header before each message's text, e.g. `<|im_start|>user\\n`: a special token, its *mark*, and
what follows it. Headers are found by rendering the template with texts that differ, and taking what stays the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Message = dict[str, str]

LEAST_TOKENS = (
    8  # a message of fewer at the prompt's end is its answer's header: the prompt's end stands for it
)
_TEXTS = ("Zebras", "quite another")  # that no first token has in common


@dataclass(frozen=True)
class MessageHeaders:
    """headers: token ids, each a mark and what follows it up to the message's text, which may be nothing more."""

    headers: tuple[tuple[int, ...], ...] = ()

    def boundaries(self, tokens: np.ndarray) -> tuple[int, ...]:
        """Offsets at which the texts of messages begin, ascending, without the first message's and without any
        within LEAST_TOKENS of the end. tokens: int[L]"""
        found: list[np.ndarray] = []
        for mark in sorted({header[0] for header in self.headers}):
            at = np.flatnonzero(tokens == mark)
            begins = at + 1
            for header in sorted((h for h in self.headers if h[0] == mark), key=len):
                inside = at + len(header) <= len(tokens)
                for offset, token in enumerate(header):
                    inside &= tokens.take(at + offset, mode="clip") == token
                begins[inside] = at[inside] + len(header)
            found.append(begins)
        if not found:
            return ()
        begins = np.unique(np.concatenate(found))[1:]
        return tuple(begins[begins <= len(tokens) - LEAST_TOKENS].tolist())


def headers_of(render: Callable[[list[Message]], Sequence[int]], special: Collection[int]) -> MessageHeaders:
    """The headers of a chat template.

    render: messages (role and content) → token ids, without a header for the answer; may raise anything for roles
        or orders that the template has no place for
    special: the tokenizer's special and added tokens
    """
    headers = set()
    for before, role, after in _conversations():
        try:
            one, other = (list(render([*before, {"role": role, "content": text}, *after])) for text in _TEXTS)
        except Exception:  # templates raise what they like
            continue
        begin = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
        mark = next((i for i in reversed(range(begin)) if one[i] in special), None)
        if mark is not None:
            headers.add(tuple(one[mark:begin]))
    return MessageHeaders(tuple(sorted(headers)))


def _conversations() -> Iterator[tuple[list[Message], str, list[Message]]]:
    """(messages before, a role, messages after): one of each role, where templates usually allow it."""
    user, assistant = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes"}
    yield [], "system", [user]
    yield [], "user", []
    yield [user], "assistant", [user]
    yield [user, assistant], "user", []
    yield [user, assistant], "tool", []


def from_tokenizer(tokenizer: Any, template: str | None = None) -> MessageHeaders:
    """The headers of a Hugging Face tokenizer's chat template, or of another `template`; none without either."""
    if tokenizer is None or not (template or getattr(tokenizer, "chat_template", None)):
        return MessageHeaders()
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    chosen = {} if template is None else {"chat_template": template}

    def render(messages: list[Message]) -> list[int]:
        return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **chosen)

    return headers_of(render, special)
