"""What a replay has to send: items in the trace's order, what each waits for, and its prompt when it is due.

A `RecordedPlan` sends a trace's prompts as they are. A `ScriptPlan` lets the server's own answers become the
history of later turns.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from marconi_ext.traces.request import Request
from marconi_ext.traces.rescript import rescript
from marconi_ext.traces.script import Histories, Script, in_order


@dataclass(frozen=True)
class Item:
    """One request to come.

    due_s: its time in the trace, from 0 on; answer_tokens: how many to ask for
    after: indices of earlier items that must have ended before it can be sent
    """

    session_id: str
    turn: int
    due_s: float
    answer_tokens: int
    after: tuple[int, ...] = ()


class Plan(Protocol):
    """items: in the trace's order; an item waits for earlier ones only.

    needs_answers: whether an item can't be sent once something that it waits for has failed
    """

    items: list[Item]
    needs_answers: bool

    def prompt(self, index: int) -> np.ndarray:
        """int32[L] - the prompt of an item of which all that it waits for has ended."""

    def answered(self, index: int, prompt: np.ndarray, output_ids: np.ndarray) -> None:
        """Note a whole answer."""


class RecordedPlan:
    """Recorded prompts, turn after turn; a failed turn doesn't stop the next, whose prompt is known."""

    needs_answers = False

    def __init__(self, requests: Sequence[Request], max_output_tokens: int | None = None) -> None:
        self._requests = requests
        self.items = []
        latest: dict[str, int] = {}
        for index, request in enumerate(requests):
            before = latest.get(request.session_id)
            after = () if before is None else (before,)
            answer_tokens = max(1, min(len(request.output_ids), max_output_tokens or sys.maxsize))
            self.items.append(Item(request.session_id, request.turn, request.arrival_s, answer_tokens, after))
            latest[request.session_id] = index

    def prompt(self, index: int) -> np.ndarray:
        return self._requests[index].input_ids

    def answered(self, index: int, prompt: np.ndarray, output_ids: np.ndarray) -> None:
        pass


class ScriptPlan:
    """Scripts; a failed turn ends its session and whatever forks off it."""

    needs_answers = True

    def __init__(self, scripts: Sequence[Script]) -> None:
        self._histories = Histories(scripts)
        self._turns = in_order(scripts)
        places = {(script.session_id, turn): i for i, (script, turn) in enumerate(self._turns)}
        zero_s = min((script.turns[turn].at_s for script, turn in self._turns), default=0.0)
        self.items = []
        for script, turn in self._turns:
            after: tuple[int, ...] = ()
            if turn:
                after = (places[script.session_id, turn - 1],)
            elif script.fork and script.fork.turn:
                after = (places[script.fork.parent, script.fork.turn - 1],)
            due = script.turns[turn]
            self.items.append(Item(script.session_id, turn, due.at_s - zero_s, due.answer_tokens, after))

    def prompt(self, index: int) -> np.ndarray:
        return self._histories.prompt(*self._turns[index])

    def answered(self, index: int, prompt: np.ndarray, output_ids: np.ndarray) -> None:
        self._histories.answered(self._turns[index][0], prompt, output_ids)


def with_own_history(
    requests: Sequence[Request], vocabulary: int, max_output_tokens: int | None = None
) -> ScriptPlan:
    """A plan of recorded requests in which the server's answers stand where the recorded ones did.

    Each request keeps its session, turn and time, and waits for the turn before even where its prompt
    doesn't contain that turn's answer. Token ids beyond the vocabulary are folded into it.
    """
    longest = max((len(request.input_ids) for request in requests), default=0)
    scripts = rescript(
        requests,
        vocabulary=vocabulary,
        max_prompt_tokens=longest,
        max_answer_tokens=max_output_tokens,
    ).scripts
    plan = ScriptPlan(scripts)
    latest: dict[str, int] = {}
    for index, (item, request) in enumerate(zip(plan.items, requests, strict=True)):
        before = latest.get(request.session_id)
        after = set(item.after) | (set() if before is None else {before})
        plan.items[index] = Item(
            request.session_id, request.turn, request.arrival_s, item.answer_tokens, tuple(sorted(after))
        )
        latest[request.session_id] = index
    return plan
