"""A log of messages as a model's chat template would have written it, thoughts and all: `trace convert --template`."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from marconi_ext.traces.chat import Call, Message, linear_calls
from marconi_ext.traces.chat_template import MARKERS, ChatTemplate, pieces
from marconi_ext.traces.request import token_array
from marconi_ext.traces.text import Tekken, TextTokenizer

FIRST_MARKER = 900  # ids of markers in Tekken, among its control tokens that nothing uses
WORDS = "so, the next step is to look at what this means for that, and then to check it again"
Said = Mapping[str, Any]
"""One of OpenAI's messages."""
THOUGHTS_MEDIAN, THOUGHTS_SIGMA = 150, 0.8  # words that are drawn where the log has no thoughts


@dataclass(frozen=True)
class Templated:
    """A tokenizer that writes conversations with a chat template.

    seed: of thoughts that the log doesn't have, which are drawn for each answer of a template that thinks
    """

    model: TextTokenizer
    template: ChatTemplate
    seed: int = 0

    @property
    def start(self) -> list[int]:
        return self.model.start

    @property
    def frames(self) -> dict[str, tuple[list[int], list[int]]]:
        return self.model.frames

    def encode(self, text: str) -> list[int]:
        """The text's tokens, each marker one where the vocabulary has it."""
        ids: list[int] = []
        for piece in pieces(text):
            ids += self._marker(piece) if piece in MARKERS else self.model.encode(piece)
        return ids

    def _marker(self, text: str) -> list[int]:
        return (
            [FIRST_MARKER + MARKERS.index(text)]
            if isinstance(self.model, Tekken)
            else self.model.encode(text)
        )

    def calls(self, session: str, messages: Sequence[Message]) -> list[Call]:
        """One call for each answer, in order."""
        rng = np.random.default_rng([self.seed, 31, zlib.crc32(session.encode())])
        said = [self._said(message, rng) for message in _one_system(messages)]
        written = written_calls(self.template, said)
        start = list(self.model.start)
        return [
            Call(token_array(start + self.encode(prompt)), token_array(self.encode(answer)))
            for prompt, answer in written
        ]

    def _said(self, message: Message, rng: np.random.Generator) -> dict[str, Any]:
        found: dict[str, Any] = {"role": message.role}
        found["content"] = message.text if message.spoken is None else message.spoken
        if message.calls:
            found["tool_calls"] = [
                {"type": "function", "function": {"name": name, "arguments": arguments}}
                for name, arguments in message.calls
            ]
        if message.role == "assistant" and self.template.thinks:
            found["reasoning_content"] = message.reasoning or _drawn_thoughts(rng)
        return found


def written_calls(
    template: ChatTemplate,
    messages: Sequence[Said],
    sent_back: Callable[[Said], Said] = lambda answer: answer,
) -> Iterator[tuple[str, str]]:
    """Prompt and answer of each assistant message that has something before it.

    sent_back: what the client makes of an answer before it is part of later prompts
    """
    history: list[Said] = []
    for message in messages:
        if message["role"] != "assistant":
            history.append(message)
            continue
        if history:
            yield template.render(history, generation=True), template.answer(history, message)
        history.append(sent_back(message))


def without_thoughts(answer: Said) -> Said:
    """What most clients send back."""
    return {key: value for key, value in answer.items() if key != "reasoning_content"}


def calls_of(session: str, messages: list[Message], tokenizer: TextTokenizer) -> list[Call]:
    """The calls of a conversation, as the tokenizer's template writes them, else each a prefix of the whole."""
    if isinstance(tokenizer, Templated):
        return tokenizer.calls(session, messages)
    return linear_calls(messages, tokenizer)


def _one_system(messages: Sequence[Message]) -> list[Message]:
    """Messages of the system at the beginning as one, for that is all that templates take; later ones as the user's."""
    first = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    whole = [Message("system", "\n\n".join(message.text for message in messages[:first]))] if first else []
    return whole + [replace(m, role="user") if m.role == "system" else m for m in messages[first:]]


def single_call(messages: list[Message], answer: str, tokenizer: TextTokenizer) -> Call:
    """The call whose prompt is `messages` and whose answer is a text."""
    return calls_of("", [*messages, Message("assistant", answer)], tokenizer)[-1]


def _drawn_thoughts(rng: np.random.Generator) -> str:
    words = max(1, round(float(rng.lognormal(np.log(THOUGHTS_MEDIAN), THOUGHTS_SIGMA))))
    return " ".join(rng.choice(WORDS.split(), words).tolist()) + "."
