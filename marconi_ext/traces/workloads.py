"""The demo's three workloads: agent sessions, few-shot questions, forked conversations."""

from dataclasses import dataclass

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

    sessions: int = 10
    turns: int = 4
    forks: int = 6
    fork_turns: int = 1
    system_tokens: int = 200
    user_tokens: tuple[int, int] = (50, 300)
    answer_tokens: tuple[int, int] = (30, 120)


def agent(sizes: AgentSizes, seed: int, vocabulary: int) -> list[Script]:
    """The agent workload."""
    rng = np.random.default_rng([seed, 11])
    system = draw_tokens(rng, sizes.system_tokens, vocabulary)
    drawn = rng.permutation(np.repeat(np.arange(sizes.sessions), sizes.turns))
    places = np.argsort(drawn, kind="stable").reshape(sizes.sessions, sizes.turns)  # of each turn, ascending
    scripts = []
    for session in range(sizes.sessions):
        turns = []
        for turn in range(sizes.turns):
            user = draw_tokens(rng, between(rng, sizes.user_tokens), vocabulary)
            new_ids = user if turn else np.concatenate([system, user])
            turns.append(Turn(new_ids, between(rng, sizes.answer_tokens), float(places[session, turn])))
        scripts.append(Script(f"agent/{session}", tuple(turns)))
    return scripts


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
    """The fork workload: conversations first, turn by turn; then their forks, in a drawn order."""
    rng = np.random.default_rng([seed, 13])
    system = draw_tokens(rng, sizes.system_tokens, vocabulary)
    bases, copies = [], []
    for session in range(sizes.sessions):
        turns = []
        for turn in range(sizes.turns):
            user = draw_tokens(rng, between(rng, sizes.user_tokens), vocabulary)
            new_ids = user if turn else np.concatenate([system, user])
            due = float(turn * sizes.sessions + session)
            turns.append(Turn(new_ids, between(rng, sizes.answer_tokens), due))
        bases.append(Script(f"fork/{session}", tuple(turns)))
    now = float(sizes.sessions * sizes.turns)
    slots = rng.permutation(sizes.sessions * sizes.forks)
    for base in bases:
        turn = tokens = 0
        for copy in range(sizes.forks):
            if copy % 2 and tokens > 1:
                tokens -= 1  # one token apart from the copy before
            else:
                turn = int(rng.integers(1, sizes.turns))
                tokens = int(rng.integers(0, len(base.turns[turn].new_ids)))
            at = now + float(slots[len(copies)]) * sizes.fork_turns
            turns = tuple(
                Turn(
                    draw_tokens(rng, between(rng, sizes.user_tokens), vocabulary),
                    between(rng, sizes.answer_tokens),
                    at + i,
                )
                for i in range(sizes.fork_turns)
            )
            copies.append(Script(f"{base.session_id}/{copy}", turns, Fork(base.session_id, turn, tokens)))
    return [*bases, *copies]
