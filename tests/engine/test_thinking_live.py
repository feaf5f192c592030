"""Chats of a thinking model, tool loops and repeated prompts against a live server: the reuse, and the same answers as
with the prefix cache off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from id_tokenizer import write_tokenizer
from live_server import running
from server_pair import Answer

from marconi_ext.results.prefix_tree import common_prefix
from marconi_ext.traces.script import draw_tokens
from marconi_ext.traces.synthetic import synthetic

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


SMALL = {"user_tokens": (40, 120), "answer_tokens": (8, 20), "system_tokens": 100}
WRITTEN = (  # traffic, its sizes, and whether its template is the server's
    ("thinking", {"template": "qwen3.5", "sessions": 3, "turns": 3}, True),  # a
    ("thinking", {"template": "qwen3.5-off", "sessions": 2, "turns": 3}, True),  # b
    ("tool-loops", {"template": "qwen3.5", "sessions": 2, "tasks": (2, 2), "calls": (2, 4)}, True),  # c, d
    (
        "tool-loops",
        {"template": "qwen3.5", "sessions": 2, "tasks": (2, 2), "calls": (2, 3), "client": "no-thoughts"},
        True,
    ),
    ("thinking", {"template": "qwen3.5-kept", "sessions": 2, "turns": 3}, False),  # f
    ("thinking", {"template": "plain", "sessions": 2, "turns": 3, "client": "rewrites"}, False),  # g
    *(
        ("thinking", {"template": name, "sessions": 2, "turns": 2}, False)
        for name in ("nemotron-3", "kimi", "glm")
    ),
)


def test_templates_of_thinking_models(model: Path, tmp_path: Path) -> None:
    """Patterns a to g on a server that knows one template: its turns lose one token at most, and no answer changes,
    whichever template wrote the prompt. Each of two rounds sends all prompts; the second finds each served to its last
    token, and so does one of many that are sent at once."""
    asked: list[Asked] = []
    for name, sizes, known in WRITTEN:
        said: dict[str, list[np.ndarray]] = {}
        for request in synthetic(name, seed=5, vocabulary=4_096, **(SMALL | sizes)):
            prompt, earlier = request.input_ids, said.setdefault(request.session_id, [])
            # the server's answers aren't the trace's: what is shared is a part of earlier prompts
            shared = max((common_prefix(prompt, one) for one in earlier), default=0)
            asked.append((prompt.tolist(), shared if known and earlier else None))
            earlier.append(prompt)
    folder = write_tokenizer(tmp_path / "tokenizer", "qwen3.5", 4_096)
    with running(model, marconi=False, disable_radix_cache=True) as live:
        expected = [live.generate(prompt, ANSWER_TOKENS) for prompt, _ in asked]
        alone = [live.generate(prompt, ANSWER_TOKENS) for prompt in samples()]
    with running(model, skip_tokenizer_init=False, tokenizer_path=folder) as live:
        rounds = [[live.generate(prompt, ANSWER_TOKENS) for prompt, _ in asked] for _ in range(2)]
        together = [
            live.generate_all([(prompt, ANSWER_TOKENS)] * number, concurrency=number)
            for number, prompt in zip((4, 16, 64), samples(), strict=True)
        ]
        live.assert_nothing_leaked()
        assert len(live.marconi()["policy"]["messages"]["endings"]) == 2
    for answers in rounds:
        for number, (answer, wanted) in enumerate(zip(answers, expected, strict=True)):
            assert_same(answer, wanted, number)
    lost = [
        (number, shared - answer.cached_tokens)
        for number, ((_, shared), answer) in enumerate(zip(asked, rounds[0], strict=True))
        if shared is not None
    ]
    assert len(lost) > 25 and all(tokens <= 1 for _, tokens in lost), lost
    assert [answer.cached_tokens for answer in rounds[1]] == [len(prompt) - 1 for prompt, _ in asked]
    for prompt, answers, wanted in zip(samples(), together, alone, strict=True):
        for answer in answers:
            assert_same(answer, wanted, len(answers))
        reused = sorted(answer.cached_tokens for answer in answers)
        assert reused[0] <= 1 and reused[1:] == [len(prompt) - 1] * (len(answers) - 1)


def assert_same(answer: Answer, wanted: Answer, number: int) -> None:
    assert answer.output_ids == wanted.output_ids, number
    np.testing.assert_allclose(answer.logprobs, wanted.logprobs, atol=1e-4, rtol=0, err_msg=str(number))
