"""Conversations before they are answered: what users will say, how long answers will be, who forks off whom.

A script can be played offline, with drawn answers (`play`), or against a live server whose own answers
become the history.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from marconi_ext.traces.request import Request, token_array

VOCABULARY = 131_072  # Tekken's and Nemotron-H's
CONTROL_IDS = 1_000  # ids below it are control tokens


@dataclass(frozen=True, eq=False)
class Turn:
    """One request to come.

    new_ids: int32[n] - tokens added to the history; answer_tokens: how many the model shall answer
    at_s: when it is due (s); in a closed loop only the order counts
    """

    new_ids: np.ndarray
    answer_tokens: int
    at_s: float


@dataclass(frozen=True)
class Fork:
    """Where a script leaves another one: after `tokens` of the new tokens of the parent's turn `turn`.

    One turn past the parent's last, with no tokens, is the end of its last answer.
    """

    parent: str
    turn: int
    tokens: int


@dataclass(frozen=True)
class Script:
    """One conversation; a forked one starts with its parent's history up to the fork."""

    session_id: str
    turns: tuple[Turn, ...]
    fork: Fork | None = None


class Histories:
    """The token histories of scripts under way, answers included."""

    def __init__(self, scripts: Sequence[Script]) -> None:
        self._scripts = {script.session_id: script for script in scripts}
        if len(self._scripts) != len(scripts):
            raise ValueError("scripts: two have the same session_id")
        # session -> per turn: history before it, then the prompt with its answer
        self._whole: dict[str, list[np.ndarray]] = {name: [] for name in self._scripts}

    def ready(self, script: Script, turn: int) -> bool:
        """Whether all that turn's history needs has been answered."""
        if turn or script.fork is None:
            return len(self._whole[script.session_id]) == turn
        return len(self._whole[script.fork.parent]) >= script.fork.turn

    def prompt(self, script: Script, turn: int) -> np.ndarray:
        """int32[L] - the prompt of a turn that is ready."""
        return np.concatenate([self._before(script, turn), script.turns[turn].new_ids])

    def answered(self, script: Script, prompt: np.ndarray, answer: np.ndarray) -> None:
        """Note the next turn's prompt and answer."""
        self._whole[script.session_id].append(np.concatenate([prompt, answer]))

    def _before(self, script: Script, turn: int) -> np.ndarray:
        if turn:
            return self._whole[script.session_id][turn - 1]
        if script.fork is None:
            return token_array([])
        parent, fork = self._scripts[script.fork.parent], script.fork
        before = self._before(parent, fork.turn)
        if not fork.tokens:
            return before
        return np.concatenate([before, parent.turns[fork.turn].new_ids[: fork.tokens]])


def in_order(scripts: Sequence[Script]) -> list[tuple[Script, int]]:
    """All turns by the time they are due; scripts given first come first at equal times."""
    turns = [(turn.at_s, i, k) for i, s in enumerate(scripts) for k, turn in enumerate(s.turns)]
    return [(scripts[i], k) for _, i, k in sorted(turns)]


def play(scripts: Sequence[Script], seed: int, vocabulary: int = VOCABULARY) -> Iterator[Request]:
    """Yield the scripts' requests in order, with answers drawn from the seed."""
    histories = Histories(scripts)
    numbers = {script.session_id: i for i, script in enumerate(scripts)}
    zero_s = None
    for script, turn in in_order(scripts):
        if not histories.ready(script, turn):
            raise ValueError(f"{script.session_id}, turn {turn}: is due before the turn it builds on")
        due = script.turns[turn]
        rng = np.random.default_rng([seed, 7, numbers[script.session_id], turn])
        prompt = histories.prompt(script, turn)
        answer = draw_tokens(rng, due.answer_tokens, vocabulary)
        histories.answered(script, prompt, answer)
        zero_s = due.at_s if zero_s is None else zero_s
        boundaries = (len(prompt) - len(due.new_ids), len(prompt))
        yield Request(
            script.session_id, turn, due.at_s - zero_s, token_array(prompt), token_array(answer), boundaries
        )


def draw_tokens(rng: np.random.Generator, n: int, vocabulary: int) -> np.ndarray:
    """int32[n] - ordinary tokens, uniformly drawn; control tokens are left out where there is room."""
    return rng.integers(min(CONTROL_IDS, vocabulary // 4), vocabulary, size=n, dtype=np.int32)


def between(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    """A whole number from bounds, both included."""
    return int(rng.integers(bounds[0], bounds[1] + 1))
