"""Chats of a thinking model, tool loops and repeated prompts against a live server: the reuse, and the same answers as
with the prefix cache off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from live_server import Answer, running

from marconi_ext.traces.script import draw_tokens

pytestmark = pytest.mark.engine

BEGIN, TEXT, ANSWER, THINK, LINE = (
    1,
    3,
    4,
    100,
    101,
)  # <s>, [INST] and [/INST] of the toy model's tokenizer, and two
ANSWER_TOKENS = 6

Asked = tuple[list[int], int | None]
"""A prompt, and how many tokens a perfect cache reuses of it; None: not looked at."""


def traffic() -> list[Asked]:
    """Eight chats of three turns, a prompt four times, and a tool loop with the user's next task.

    A chat's generation prompt is [/INST] and two tokens, of which the next turn repeats the first. What was generated
    is dropped.
    """
    rng = np.random.default_rng(11)

    def draw(tokens: int) -> list[int]:
        return draw_tokens(rng, tokens, 4_096).tolist()

    def asked(history: list[int]) -> list[int]:
        return [*history, TEXT, *draw(int(rng.integers(60, 150))), ANSWER]

    found: list[Asked] = []
    for _ in range(8):
        history, shared = [BEGIN, TEXT, *draw(100)], None
        for _ in range(3):
            prompt = asked(history)
            found.append(([*prompt, THINK, LINE], shared))
            shared, history = len(prompt), [*prompt, *draw(20)]
    for length in (63, 64, 65, 200):
        prompt = [BEGIN, *draw(length - 1)]
        found += [(prompt, None), *[(prompt, length - 1)] * 3]
    first = [*asked([BEGIN, TEXT, *draw(90)]), THINK, LINE]
    call, found = first, [*found, (first, None)]
    for _ in range(4):  # what the calls were answered is drawn: their last states aren't looked at
        call = [*call, *draw(40), TEXT, *draw(30), ANSWER, THINK, LINE]
        found.append((call, None))
    task = [*first[:-2], *draw(200), TEXT, *draw(50), ANSWER, THINK, LINE]
    return [*found, (task, len(first) - 2)]


def samples() -> list[list[int]]:
    """Prompts to be sent many times at once."""
    rng = np.random.default_rng(12)
    return [[BEGIN, *draw_tokens(rng, length - 1, 4_096).tolist()] for length in (129, 500, 640)]


@pytest.fixture(scope="module")
def expected(model: Path) -> list[Answer]:
    with running(model, marconi=False, disable_radix_cache=True) as live:
        return [
            live.generate(prompt, ANSWER_TOKENS)
            for prompt in [*(prompt for prompt, _ in traffic()), *samples()]
        ]


@pytest.mark.parametrize("page", [1, 16])
def test_what_turns_share_is_reused_and_answers_stay(model: Path, expected: list[Answer], page: int) -> None:
    asked = traffic()
    with running(model, skip_tokenizer_init=False, page_size=page) as live:
        answers = [live.generate(prompt, ANSWER_TOKENS) for prompt, _ in asked]
        together = [live.generate_all([(prompt, ANSWER_TOKENS)] * 12, concurrency=12) for prompt in samples()]
        live.assert_nothing_leaked()
        states = live.marconi()["policy"]["counts"]
    for number, (answer, wanted) in enumerate(zip(answers, expected, strict=False)):
        assert_same(answer, wanted, number)
    for prompt, found, wanted in zip(samples(), together, expected[len(answers) :], strict=True):
        for answer in found:
            assert_same(answer, wanted, len(prompt))
        reused = sorted(answer.cached_tokens for answer in found)
        assert reused[0] <= 1 and reused[1:] == [(len(prompt) - 1) // page * page] * 11  # all begin alike
    lost = [
        (shared // page * page) - answer.cached_tokens
        for (_, shared), answer in zip(asked, answers, strict=True)
        if shared is not None
    ]
    assert max(lost) <= 0, lost
    assert states["saves"] > 0


def assert_same(answer: Answer, wanted: Answer, number: int) -> None:
    assert answer.output_ids == wanted.output_ids, number
    np.testing.assert_allclose(answer.logprobs, wanted.logprobs, atol=1e-4, rtol=0, err_msg=str(number))
