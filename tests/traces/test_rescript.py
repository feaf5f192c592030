"""Recorded requests as scripts: the server's answers stand where the recorded ones did."""

import numpy as np
import pytest

from marconi_ext.traces import Request, synthetic
from marconi_ext.traces.rescript import fold, rescript
from marconi_ext.traces.script import Histories, in_order


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


def ask(session: str, turn: int, prompt: list[int], answer: list[int]) -> Request:
    return Request(session, turn, 0.0, ids(*prompt), ids(*answer))


def prompts(requests: list[Request], answer: int, **changes) -> list[list[int]]:
    """The prompts that a server would see whose answers consist of one token."""
    found = rescript(requests, **{"vocabulary": 9_000, "max_prompt_tokens": 100, **changes})
    histories, seen = Histories(found.scripts), []
    for script, turn in in_order(found.scripts):
        prompt = histories.prompt(script, turn)
        seen.append(prompt.tolist())
        histories.answered(script, prompt, ids(*[answer] * script.turns[turn].answer_tokens))
    return seen


def test_the_servers_answer_replaces_the_recorded_one() -> None:
    turns = [ask("a", 0, [1, 2], [3, 4]), ask("b", 0, [1, 9], [5]), ask("a", 1, [1, 2, 3, 4, 6], [7])]
    assert prompts(turns, 8_000) == [[1, 2], [1, 9], [1, 2, 8_000, 8_000, 6]]


def test_prompts_that_go_back_keep_their_text() -> None:
    turns = [
        ask("a", 0, [1, 2], [3]),
        ask("a", 1, [1, 2, 3, 4], [5]),
        ask("a", 2, [1, 2, 3, 6], [7]),  # back to the first answer
        ask("a", 3, [1, 2, 4, 6], [7]),  # the first answer is gone
    ]
    assert prompts(turns, 8_000) == [[1, 2], [1, 2, 8_000, 4], [1, 2, 8_000, 6], [1, 2, 4, 6]]


def test_long_prompts_are_left_out_and_counted() -> None:
    turns = [ask("a", 0, [1] * 9, [2]), ask("b", 0, [1] * 11, [2]), ask("c", 0, [1], [])]
    found = rescript(turns, vocabulary=100, max_prompt_tokens=10, max_answer_tokens=1)
    assert ([s.session_id for s in found.scripts], found.too_long) == (["a#0", "c#0"], 1)
    assert all(script.turns[0].answer_tokens == 1 for script in found.scripts)


def test_wanted_counts_only_those_that_fit() -> None:
    turns = [ask(str(i), 0, [1] * (5 + 10 * (i % 2)), [2]) for i in range(10)]
    assert len(rescript(turns, vocabulary=100, max_prompt_tokens=10, wanted=3).scripts) == 3


def test_a_generated_trace_comes_back_as_it_was() -> None:
    requests = list(synthetic("tree-search", sessions=2, nodes=5)) + list(synthetic("agent", sessions=2))
    seen = prompts(requests, 1, vocabulary=131_072, max_prompt_tokens=10_000)
    assert [len(prompt) for prompt in seen] == [len(request.input_ids) for request in requests]


@pytest.mark.parametrize("vocabulary", [300, 4_096])
def test_folding_keeps_equal_prefixes_equal(vocabulary: int) -> None:
    long = np.random.default_rng(0).integers(0, 131_072, size=500, dtype=np.int32)
    folded = fold(long, vocabulary)
    assert folded.max() < vocabulary and np.array_equal(folded[:200], fold(long[:200], vocabulary))
    small = long % vocabulary
    assert np.array_equal(fold(small, vocabulary), small)
