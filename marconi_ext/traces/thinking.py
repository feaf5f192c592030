"""Seeded chats of thinking models, as chat templates write them: turns, tool loops, prompts sent many times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from marconi_ext.errors import BadInputError
from marconi_ext.traces.chat_template import ChatTemplate, find_template
from marconi_ext.traces.id_text import IdText
from marconi_ext.traces.request import Request, token_array
from marconi_ext.traces.script import between, draw_tokens
from marconi_ext.traces.templated import Said, without_thoughts, written_calls
from marconi_ext.traces.workloads import drawn_places


@dataclass(frozen=True)
class ThinkingSizes:
    """Conversations over one system prompt, so many under way at once; the next to ask is drawn each time.

    template: a name of `chat_template.TEMPLATES`
    client: a name of `CLIENTS`, what becomes of answers before they are part of later prompts
    """

    sessions: int = 20
    turns: int = 5
    at_once: int = 20
    template: str = "qwen3.5"
    client: str = "whole"
    system_tokens: int = 300
    user_tokens: tuple[int, int] = (50, 300)
    thought_tokens: tuple[int, int] = (20, 80)
    answer_tokens: tuple[int, int] = (20, 60)


@dataclass(frozen=True)
class ToolLoopSizes:
    """Agents: a task of the user's, many calls of tools, an answer, and the next task; between tasks they are idle.

    tasks, calls: a session's, and a task's, from and to
    at_once: tasks under way at a time, in the mean
    """

    sessions: int = 4
    tasks: tuple[int, int] = (2, 3)
    calls: tuple[int, int] = (5, 60)
    at_once: int = 2
    template: str = "qwen3.5"
    client: str = "whole"
    system_tokens: int = 300
    user_tokens: tuple[int, int] = (50, 300)
    thought_tokens: tuple[int, int] = (5, 30)
    answer_tokens: tuple[int, int] = (10, 30)
    result_tokens: tuple[int, int] = (10, 60)


@dataclass(frozen=True)
class SamplesSizes:
    """Prompts that are each sent many times, some of them all at once and some one after another.

    sessions: prompts; samples: of one prompt, from and to
    """

    sessions: int = 8
    samples: tuple[int, int] = (4, 64)
    template: str = "qwen3.5"
    system_tokens: int = 200
    user_tokens: tuple[int, int] = (100, 900)
    thought_tokens: tuple[int, int] = (10, 30)
    answer_tokens: tuple[int, int] = (10, 30)


def thinking(sizes: ThinkingSizes, seed: int, vocabulary: int) -> list[Request]:
    """Chats of several turns."""
    writer = _Writer(sizes, seed, 41, vocabulary)
    waves = range(0, sizes.sessions, sizes.at_once)
    together = [min(sizes.at_once, sizes.sessions - first) for first in waves]
    places = np.concatenate([drawn_places(writer.rng, n, sizes.turns) for n in together])
    places += np.repeat(waves, together)[:, None] * sizes.turns  # one wave after another
    found: list[Request] = []
    for session in range(sizes.sessions):
        messages = [writer.system]
        for _ in range(sizes.turns):
            messages += [writer.user(), writer.answer()]
        found += writer.requests(f"thinking/{session}", messages, places[session].astype(float).tolist())
    return _in_order(found)


def tool_loops(sizes: ToolLoopSizes, seed: int, vocabulary: int) -> list[Request]:
    """Agents whose loops of calls end with an answer, which the user's next task follows."""
    writer = _Writer(sizes, seed, 42, vocabulary)
    conversations, asked = [], []
    for _ in range(sizes.sessions):
        messages, tasks = [writer.system], []
        for _ in range(between(writer.rng, sizes.tasks)):
            messages.append(writer.user())
            calls = between(writer.rng, sizes.calls)
            for _ in range(calls):
                messages += [writer.answer(calls=True), writer.said("tool", sizes.result_tokens)]
            messages.append(writer.answer())
            tasks.append(calls + 1)
        conversations.append(messages)
        asked.append(tasks)
    end_s = sum(map(sum, asked)) / sizes.at_once  # a call takes a second
    found: list[Request] = []
    for session, messages in enumerate(conversations):
        times: list[float] = []
        for begin_s, calls in zip(
            np.sort(writer.rng.uniform(0, end_s, len(asked[session]))), asked[session], strict=True
        ):
            begin_s = max(float(begin_s), times[-1] + 1 if times else 0.0)
            times += (begin_s + np.arange(calls)).tolist()
        found += writer.requests(f"tool-loops/{session}", messages, times)
    return _in_order(found)


def samples(sizes: SamplesSizes, seed: int, vocabulary: int) -> list[Request]:
    """Prompts of one turn, each answered many times; of every other one all samples are due at once."""
    writer = _Writer(sizes, seed, 43, vocabulary)
    found: list[Request] = []
    for prompt in range(sizes.sessions):
        messages, number = [writer.system, writer.user()], between(writer.rng, sizes.samples)
        for sample in range(number):
            due = float(prompt) if prompt % 2 else prompt + 0.9 * sample / number
            (request,) = writer.requests(f"samples/{prompt}/{sample}", [*messages, writer.answer()], [due])
            found.append(request)
    return _in_order(found)


def _rewritten(answer: Said) -> Said:
    """A client that trims the end of a text, and writes a call's arguments anew."""
    calls = [
        {"function": {**call["function"], "arguments": call["function"]["arguments"][:-1]}}
        for call in answer.get("tool_calls", [])
    ]
    return {**answer, "content": answer["content"][:-1], **({"tool_calls": calls} if calls else {})}


CLIENTS: dict[str, Callable[[Said], Said]] = {
    "whole": lambda answer: answer,
    "no-thoughts": without_thoughts,
    "rewrites": _rewritten,
}


def find_client(name: str) -> Callable[[Said], Said]:
    """Raises BadInputError for an unknown name."""
    if name not in CLIENTS:
        raise BadInputError(f"client {name}: not one of {', '.join(CLIENTS)}")
    return CLIENTS[name]


class _Writer:
    """Draws messages, and writes conversations with the template."""

    def __init__(self, sizes: Any, seed: int, stream: int, vocabulary: int) -> None:
        self.rng = np.random.default_rng([seed, stream])
        self.template: ChatTemplate = find_template(sizes.template)
        self._sent_back = find_client(getattr(sizes, "client", "whole"))
        self._sizes, self._ids, self._vocabulary = sizes, IdText(vocabulary), vocabulary
        self.system = self.said("system", (sizes.system_tokens, sizes.system_tokens))

    def said(self, role: str, tokens: tuple[int, int]) -> dict[str, Any]:
        return {"role": role, "content": self._drawn(tokens)}

    def user(self) -> dict[str, Any]:
        return self.said("user", self._sizes.user_tokens)

    def answer(self, *, calls: bool = False) -> dict[str, Any]:
        """An answer, or a call of a tool, with thoughts where the template has them."""
        text = self._drawn(self._sizes.answer_tokens)
        answer: dict[str, Any] = {"role": "assistant", "content": "" if calls else text}
        if calls:
            answer["tool_calls"] = [{"function": {"name": "look", "arguments": text}}]
        if self.template.thinks:
            answer["reasoning_content"] = self._drawn(self._sizes.thought_tokens)
        return answer

    def requests(self, session: str, messages: list[dict[str, Any]], due_s: list[float]) -> Iterator[Request]:
        """The calls of a conversation, due at these times."""
        for turn, (prompt, answer) in enumerate(written_calls(self.template, messages, self._sent_back)):
            ids = token_array(self._ids.encode(prompt)), token_array(self._ids.encode(answer))
            yield Request(session, turn, due_s[turn], *ids)

    def _drawn(self, tokens: tuple[int, int]) -> str:
        return self._ids.text(draw_tokens(self.rng, between(self.rng, tokens), self._vocabulary))


def _in_order(requests: list[Request]) -> list[Request]:
    found = sorted(requests, key=lambda request: (request.arrival_s, request.session_id))
    zero_s = found[0].arrival_s
    return [
        Request(r.session_id, r.turn, r.arrival_s - zero_s, r.input_ids, r.output_ids, r.boundaries)
        for r in found
    ]
