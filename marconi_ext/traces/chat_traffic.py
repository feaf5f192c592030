"""Seeded chat and agent traffic with Marconi's arrival processes, and tree searches.

Lengths are log-normal; medians and spreads are set so that the means come near what the data sets' own
descriptions say (LMSYS-Chat-1M: 2.0 turns, 70-token prompts, 215-token answers; ShareGPT: longer, several
turns; SWE-agent: dozens of turns behind a shared instruction, heavy-tailed observations). They imitate
shapes, not contents.
"""

from dataclasses import dataclass

import numpy as np

from marconi_ext.traces.script import Fork, Script, Turn, between, draw_tokens


@dataclass(frozen=True)
class ChatSizes:
    """A kind of multi-turn traffic.

    sessions_per_s: mean rate of the Poisson process of session starts
    response_s: mean time from one request of a session to the next (exponential)
    mean_turns: of a geometric distribution, at least 1 and at most max_turns
    first_median, user_median, answer_median: tokens; *_sigma: spread of their logarithm
    context_tokens: a session ends before its history would be longer
    """

    sessions: int
    sessions_per_s: float
    response_s: float
    mean_turns: float
    max_turns: int
    system_tokens: int
    first_median: float
    user_median: float
    user_sigma: float
    answer_median: float
    answer_sigma: float
    context_tokens: int


LMSYS = ChatSizes(500, 1.0, 10.0, 2.0, 20, 0, 40, 40, 1.1, 150, 0.85, 8_192)
SHAREGPT = ChatSizes(500, 1.0, 10.0, 3.5, 40, 0, 60, 60, 1.4, 180, 0.9, 16_384)
SWE_AGENT = ChatSizes(100, 0.5, 7.5, 20.0, 80, 1_200, 500, 180, 1.3, 90, 0.7, 65_536)


@dataclass(frozen=True)
class TreeSearchSizes:
    """Searches that expand an old node again and again, as tree-of-thoughts and tool searches do."""

    sessions: int = 20
    sessions_per_s: float = 0.2
    step_s: float = 2.0
    system_tokens: int = 400
    task_tokens: tuple[int, int] = (100, 600)
    nodes: int = 24
    step_tokens: tuple[int, int] = (20, 150)
    answer_tokens: tuple[int, int] = (20, 100)
    backtrack: float = 0.35  # chance that a step starts from an older node than the last one


def chats(name: str, sizes: ChatSizes, seed: int, vocabulary: int) -> list[Script]:
    """Sessions of one kind of traffic."""
    rng = np.random.default_rng([seed, 21])
    system = draw_tokens(rng, sizes.system_tokens, vocabulary)
    start_s = 0.0
    scripts = []
    for session in range(sizes.sessions):
        start_s += float(rng.exponential(1 / sizes.sessions_per_s))
        now_s, history = start_s, len(system)
        turns: list[Turn] = []
        for turn in range(min(int(rng.geometric(1 / sizes.mean_turns)), sizes.max_turns)):
            user = _length(rng, sizes.user_median if turn else sizes.first_median, sizes.user_sigma)
            answer = _length(rng, sizes.answer_median, sizes.answer_sigma)
            history += user + answer
            if turns and history > sizes.context_tokens:
                break
            new_ids = draw_tokens(rng, user, vocabulary)
            turns.append(Turn(new_ids if turn else np.concatenate([system, new_ids]), answer, now_s))
            now_s += float(rng.exponential(sizes.response_s))
        scripts.append(Script(f"{name}/{session}", tuple(turns)))
    return scripts


def tree_search(sizes: TreeSearchSizes, seed: int, vocabulary: int) -> list[Script]:
    """Each step of a search is a script of one turn that forks off the end of an older step."""
    rng = np.random.default_rng([seed, 22])
    system = draw_tokens(rng, sizes.system_tokens, vocabulary)
    start_s = 0.0
    scripts = []
    for search in range(sizes.sessions):
        start_s += float(rng.exponential(1 / sizes.sessions_per_s))
        now_s = start_s
        task = draw_tokens(rng, between(rng, sizes.task_tokens), vocabulary)
        for node in range(sizes.nodes):
            name = f"tree-search/{search}/{node}"
            answer = between(rng, sizes.answer_tokens)
            if node == 0:
                scripts.append(Script(name, (Turn(np.concatenate([system, task]), answer, now_s),)))
            else:
                parent = int(rng.integers(node)) if rng.random() < sizes.backtrack else node - 1
                step = draw_tokens(rng, between(rng, sizes.step_tokens), vocabulary)
                fork = Fork(f"tree-search/{search}/{parent}", 1, 0)
                scripts.append(Script(name, (Turn(step, answer, now_s),), fork))
            now_s += float(rng.exponential(sizes.step_s))
    return scripts


def _length(rng: np.random.Generator, median: float, sigma: float) -> int:
    return max(1, round(float(rng.lognormal(np.log(median), sigma))))
