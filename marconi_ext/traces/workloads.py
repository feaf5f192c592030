"""The demo's workloads from agents: agent sessions, few-shot questions, forked conversations."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from marconi_ext.traces.script import Fork, Script, Turn, between, draw_tokens


@dataclass(frozen=True)
class AgentSizes:
    """Sessions over one system prompt, all under way at once; the next to ask is drawn each time."""

    sessions: int = 30
    turns: int = 8
    system_tokens: int = 700
    user_tokens: tuple[int, int] = (50, 300)
    answer_tokens: tuple[int, int] = (30, 120)


@dataclass(frozen=True)
class FewShotSizes:
    """Questions behind one of a few long prefixes. A session is one question."""

    sessions: int = 60
    prefixes: int = 5
    prefix_tokens: tuple[int, int] = (300, 1_500)
    question_tokens: tuple[int, int] = (70, 150)
    answer_tokens: tuple[int, int] = (10, 40)


@dataclass(frozen=True)
class ForkSizes:
    """Conversations of which copies leave inside a user's message, every other pair one token apart."""

    sessions: int = 6
    turns: int = 4
    forks: int = 4
    fork_turns: int = 1
    system_tokens: int = 200
    user_tokens: tuple[int, int] = (50, 300)
    answer_tokens: tuple[int, int] = (30, 120)


def agent(sizes: AgentSizes, seed: int, vocabulary: int) -> list[Script]:
    """The agent workload."""
    rng = np.random.default_rng([seed, 11])
    return _conversations(rng, sizes, "agent", vocabulary)


def few_shot(sizes: FewShotSizes, seed: int, vocabulary: int) -> list[Script]:
    """The few-shot workload: prefixes are asked in turn at random."""
    rng = np.random.default_rng([seed, 12])
    prefixes = [
        draw_tokens(rng, between(rng, sizes.prefix_tokens), vocabulary) for _ in range(sizes.prefixes)
    ]
    scripts = []
    for number in range(sizes.sessions):
        prefix = prefixes[rng.integers(sizes.prefixes)]
        question = draw_tokens(rng, between(rng, sizes.question_tokens), vocabulary)
        turn = Turn(np.concatenate([prefix, question]), between(rng, sizes.answer_tokens), float(number))
        scripts.append(Script(f"few-shot/{number}", (turn,)))
    return scripts


def fork(sizes: ForkSizes, seed: int, vocabulary: int) -> list[Script]:
    """The fork workload: each fork comes at a drawn time after the turn that it leaves was asked."""
    rng = np.random.default_rng([seed, 13])
    bases, copies = _conversations(rng, sizes, "fork", vocabulary), []
    for base in bases:
        turn = tokens = 0
        for copy in range(sizes.forks):
            if copy % 2 and tokens > 1:
                tokens -= 1  # one token apart from the copy before
            else:
                turn = int(rng.integers(1, sizes.turns))
                tokens = int(rng.integers(0, len(base.turns[turn].new_ids)))
            start = rng.uniform(base.turns[turn].at_s, sizes.sessions * sizes.turns)
            due = np.sort(rng.uniform(start, sizes.sessions * sizes.turns, size=sizes.fork_turns))
            turns = _turns(rng, sizes, due, vocabulary)
            copies.append(Script(f"{base.session_id}/{copy}", turns, Fork(base.session_id, turn, tokens)))
    return [*bases, *copies]


def _conversations(
    rng: np.random.Generator, sizes: AgentSizes | ForkSizes, name: str, vocabulary: int
) -> list[Script]:
    """Conversations over one system prompt, their turns in a drawn order."""
    system = draw_tokens(rng, sizes.system_tokens, vocabulary)
    places = drawn_places(rng, sizes.sessions, sizes.turns)
    scripts = []
    for session in range(sizes.sessions):
        turns = _turns(rng, sizes, places[session].astype(float), vocabulary)
        first = Turn(np.concatenate([system, turns[0].new_ids]), turns[0].answer_tokens, turns[0].at_s)
        scripts.append(Script(f"{name}/{session}", (first, *turns[1:])))
    return scripts


def drawn_places(rng: np.random.Generator, sessions: int, turns: int) -> np.ndarray:
    """int64[sessions, turns] - places of all turns in one order, the next session drawn each time."""
    drawn = rng.permutation(np.repeat(np.arange(sessions), turns))
    return np.argsort(drawn, kind="stable").reshape(sessions, turns)


def _turns(rng: np.random.Generator, sizes: Any, due: np.ndarray, vocabulary: int) -> tuple[Turn, ...]:
    """Turns of drawn lengths at the times `due`, float64[turns]."""
    return tuple(
        Turn(
            draw_tokens(rng, between(rng, sizes.user_tokens), vocabulary),
            between(rng, sizes.answer_tokens),
            float(at_s),
        )
        for at_s in due
    )
