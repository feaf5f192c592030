"""Where a prompt's messages begin and where its input ends, told from its token ids: conversations part there more
often than elsewhere.

A chat template puts a header before each message's text, e.g. `<|im_start|>user\\n`: a special token, its *mark*, and
what follows it. Headers are found by rendering the template with texts that differ, and taking what stays the same.
A prompt ends in a *generation prompt*: the answer's header, and often what invites or forbids thinking. Later prompts
repeat the header, and not always the rest: the *end of the input* is the last token that they repeat. It is found by
rendering a conversation with a generation prompt and again one turn later.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol

import numpy as np

Message = dict[str, Any]

TAIL_TOKENS = 16  # of a prompt: a header that ends among them is the answer's
_TEXTS = ("Zebras", "quite another")  # that no first and no last token has in common
_THOUGHTS = "Hm, stripes perhaps."


@dataclass(frozen=True, slots=True)
class Ending:
    """How prompts end, as far as the template fixes it: what closes the last message, and the generation prompt.

    tokens: token ids
    dropped: the last ones of them, that no later prompt repeats
    keeps_answer: later prompts repeat what was generated, reasoning too, where they repeat all the tokens
    """

    tokens: tuple[int, ...]
    dropped: int
    keeps_answer: bool = True


@dataclass(frozen=True, slots=True)
class InputEnd:
    """Where a prompt's input ends, as far as it is known before anything was learned.

    kind: names the ways prompts end: a template's ending (negative), or the prompt's last token
    dropped: tokens after it
    keeps_answer: as an `Ending`'s
    known: the template says so; else the last header does
    """

    kind: int
    dropped: int
    keeps_answer: bool
    known: bool


@dataclass(frozen=True)
class MessageHeaders:
    """headers: token ids, each a mark and what follows it up to the message's text, which may be nothing more.

    endings: of prompts; none: not known
    """

    headers: tuple[tuple[int, ...], ...] = ()
    endings: tuple[Ending, ...] = ()

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> MessageHeaders:
        """What `dataclasses.asdict` made of it, also by way of JSON."""
        endings = [{**ending, "tokens": tuple(ending["tokens"])} for ending in fields["endings"]]
        return cls(tuple(map(tuple, fields["headers"])), tuple(Ending(**ending) for ending in endings))

    def boundaries(self, tokens: np.ndarray) -> tuple[int, ...]:
        """Offsets at which the texts of messages begin, ascending, without the first message's and the answer's.

        tokens: int[L]
        """
        begins = self._begins(tokens)[1:]
        bare = all(len(header) == 1 for header in self.headers)  # marks: how long a header is isn't known
        if bare and len(begins) and begins[-1] > len(tokens) - 2 * TAIL_TOKENS:
            begins = begins[:-1]  # the answer's: a state there would hide where the input ends
        return tuple(begins[begins <= len(tokens) - TAIL_TOKENS].tolist())

    def input_end(self, tokens: np.ndarray) -> InputEnd | None:
        """Where the input of a prompt ends; None: neither an ending nor a header tells. tokens: int[L], L > 0"""
        tail = tokens[-max((len(ending.tokens) for ending in self.endings), default=1) :].tolist()
        for number, ending in enumerate(self.endings):  # the longest first
            if tuple(tail[-len(ending.tokens) :]) == ending.tokens:
                return InputEnd(-1 - number, ending.dropped, ending.keeps_answer, known=True)
        begins = self._begins(tokens[-2 * TAIL_TOKENS :])
        dropped = min(len(tokens), 2 * TAIL_TOKENS) - int(begins[-1]) if len(begins) else TAIL_TOKENS
        if dropped >= TAIL_TOKENS:
            return None
        return InputEnd(tail[-1], dropped, keeps_answer=True, known=False)

    def _begins(self, tokens: np.ndarray) -> np.ndarray:
        """Offsets behind all headers, ascending."""
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
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)


class Render(Protocol):
    """A chat template: messages → token ids. May raise anything for roles or orders that it has no place for.

    generation: with a generation prompt
    thinking: on or off, for templates that can do both; None: not said
    """

    def __call__(
        self, messages: list[Message], generation: bool = False, thinking: bool | None = None
    ) -> Sequence[int]: ...


def headers_of(render: Callable[[list[Message]], Sequence[int]], special: Collection[int]) -> MessageHeaders:
    """The headers of a chat template, without endings. special: the tokenizer's special and added tokens"""
    headers = set()
    for before, role, after in _conversations():
        try:
            one, other = (list(render([*before, {"role": role, "content": text}, *after])) for text in _TEXTS)
        except Exception:  # templates raise what they like
            continue
        begin = _common(one, other)
        mark = next((i for i in reversed(range(begin)) if one[i] in special), None)
        if mark is not None and begin < min(len(one), len(other)):
            headers.add(tuple(one[mark:begin]))
    return MessageHeaders(tuple(sorted(headers)))


def endings_of(render: Render) -> tuple[Ending, ...]:
    """How prompts end with a chat template, and what the next turn repeats of that; the longest first."""
    found: dict[tuple[int, ...], Ending] = {}
    for thinking in (None, True, False):
        for before in ([], [_said("user", "Hello"), _answer("Yes")]):
            try:
                ending = _ending(render, before, thinking)
            except Exception:  # as above
                continue
            if ending is None or (thinking is False and ending.tokens in found):
                continue  # the latter: it thinks all the same
            known = found.setdefault(ending.tokens, ending)
            if ending.dropped > known.dropped or not ending.keeps_answer:
                dropped = max(ending.dropped, known.dropped)
                found[ending.tokens] = Ending(
                    ending.tokens, dropped, known.keeps_answer and ending.keeps_answer
                )
    return tuple(sorted(found.values(), key=lambda ending: (-len(ending.tokens), ending.tokens)))


def _ending(render: Render, before: list[Message], thinking: bool | None) -> Ending | None:
    prompts = [list(render([*before, _said("user", text)], True, thinking)) for text in _TEXTS]
    length = _common(prompts[0][::-1], prompts[1][::-1])
    prompt = prompts[0]
    if not 0 < length < len(prompt):
        return None
    asked = [*before, _said("user", _TEXTS[0])]
    answers = _answer("Yes"), _answer("Yes", _THOUGHTS), _answer(f"<think>\n{_THOUGHTS}\n</think>\n\nYes")
    plain, apart, inside = (
        list(render([*asked, answer, _said("user", "Why?")], True, thinking)) for answer in answers
    )
    bare, thoughtful = (list(render([*asked, answer], False, thinking)) for answer in answers[:2])
    dropped = len(prompt) - _common(prompt, plain if thinking is False else apart)
    if dropped > length:  # the last message itself is written otherwise a turn later
        return None
    drops_thoughts = (apart if thoughtful != bare else inside) == plain
    return Ending(tuple(prompt[-length:]), dropped, keeps_answer=thinking is False or not drops_thoughts)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _said(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def _answer(text: str, thoughts: str | None = None) -> Message:
    answer = _said("assistant", text)
    fields = ("reasoning_content", "reasoning", "thinking")  # as one family or another calls them
    return answer if thoughts is None else answer | dict.fromkeys(fields, thoughts)


def _conversations() -> Iterator[tuple[list[Message], str, list[Message]]]:
    """(messages before, a role, messages after): one of each role, where templates usually allow it."""
    user, assistant = _said("user", "Hello"), _answer("Yes")
    yield [], "system", [user]
    yield [], "user", []
    yield [user], "assistant", [user]
    yield [user, assistant], "user", []
    yield [user, assistant], "tool", []


def read_template(render: Render, special: Collection[int]) -> MessageHeaders:
    """Headers and endings of a chat template. special: as of `headers_of`"""

    def in_parts(
        messages: list[Message], generation: bool = False, thinking: bool | None = None
    ) -> Sequence[int]:
        parted = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        return render(parted, generation, thinking)

    found = MessageHeaders()
    for how in (render, in_parts):  # models that see may take lists of parts alone
        found = MessageHeaders(headers_of(how, special).headers, endings_of(how))
        if found.headers or found.endings:
            break
    return found


def from_tokenizer(tokenizer: Any, template: str | None = None) -> MessageHeaders:
    """Headers and endings of a Hugging Face tokenizer's chat template, or of another `template`; none without
    either."""
    if tokenizer is None or not (template or getattr(tokenizer, "chat_template", None)):
        return MessageHeaders()
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    chosen = {} if template is None else {"chat_template": template}

    def render(messages: list[Message], generation: bool = False, thinking: bool | None = None) -> list[int]:
        how = {} if thinking is None else {"enable_thinking": thinking, "thinking": thinking}
        return tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=False, add_generation_prompt=generation, **how, **chosen
        )

    return read_template(render, special)
