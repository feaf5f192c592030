"""Recorded requests as scripts, so that a live server's own answers can stand where the recorded ones did."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from marconi_ext.traces.request import Request, token_array
from marconi_ext.traces.script import CONTROL_IDS, Fork, Script, Turn


@dataclass(frozen=True)
class Rescripted:
    """scripts: one of one turn for each request taken; too_long: requests left out for their length."""

    scripts: list[Script]
    too_long: int


def rescript(
    requests: Iterable[Request],
    *,
    vocabulary: int,
    max_prompt_tokens: int,
    max_answer_tokens: int | None = None,
    wanted: int | None = None,
) -> Rescripted:
    """Turn requests into scripts, in their order.

    A prompt that contains an earlier prompt of its session with its whole answer forks off that answer:
    the server's answer, of the same length, takes its place. Other prompts are sent as recorded. Token
    ids beyond the model's vocabulary are folded into it, equal ones to equal ones.
    wanted: stop after so many that fit; max_answer_tokens: ask for no more than that in one answer
    """
    scripts: list[Script] = []
    answered: dict[str, list[tuple[str, np.ndarray]]] = {}  # session -> (script, prompt and answer)
    too_long = 0
    for request in requests:
        if len(request.input_ids) > max_prompt_tokens:
            too_long += 1
            continue
        if wanted is not None and len(scripts) == wanted:
            break
        prompt = fold(request.input_ids, vocabulary)
        earlier = answered.setdefault(request.session_id, [])
        parent, known = _longest_start(prompt, earlier)
        name = f"{request.session_id}#{request.turn}"
        answer_tokens = max(1, len(request.output_ids))
        if max_answer_tokens is not None:
            answer_tokens = min(answer_tokens, max_answer_tokens)
        turn = Turn(prompt[known:], answer_tokens, float(len(scripts)))
        scripts.append(Script(name, (turn,), Fork(parent, 1, 0) if parent else None))
        if len(request.output_ids):
            earlier.append((name, np.concatenate([prompt, fold(request.output_ids, vocabulary)])))
    return Rescripted(scripts, too_long)


def fold(ids: np.ndarray, vocabulary: int) -> np.ndarray:
    """int32[n] - ids below the vocabulary's size as they are, others mapped onto its ordinary ones."""
    if not len(ids) or int(ids.max()) < vocabulary:
        return ids
    low = min(CONTROL_IDS, vocabulary // 4)
    return token_array(np.where(ids < vocabulary, ids, low + ids % (vocabulary - low)))


def _longest_start(prompt: np.ndarray, earlier: list[tuple[str, np.ndarray]]) -> tuple[str | None, int]:
    """The earlier conversation that the prompt starts with, and its length; a new token must follow."""
    best: tuple[str | None, int] = (None, 0)
    for name, whole in reversed(earlier):
        if not best[1] < len(whole) < len(prompt) or prompt[len(whole) - 1] != whole[-1]:
            continue
        if np.array_equal(prompt[: len(whole)], whole):
            best = name, len(whole)
    return best
