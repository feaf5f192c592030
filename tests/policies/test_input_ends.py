"""Where prompts' inputs end: by hand, from templates in miniature, and learned from partings."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from marconi_ext.policies.answers import FEW_ANSWERS, TRIED_EACH
from marconi_ext.policies.input_ends import (
    FEW_PROMPTS,
    GUESS_TOKENS,
    GUESSED_PROMPTS,
    KEPT_CLASSES,
    InputEnds,
)
from marconi_ext.policies.messages import Ending, InputEnd, MessageHeaders, endings_of

START, END, LINE, THINK, CLOSE = 1, 2, 3, 4, 5
ROLES = {"system": 10, "user": 11, "assistant": 12, "tool": 13}
HEADER = (START, 12, LINE)
CLOSED = (END, LINE, *HEADER)  # the last message closed, and the answer's header


def words(text: str) -> list[int]:
    marks = {"<think>": THINK, "</think>": CLOSE}
    return [marks.get(word, 100 + sum(map(ord, word))) for word in text.split()]


def template(*, opens: bool, keeps: bool = False, empty_blocks: bool = False):
    """<start> role \\n text <end> \\n. opens: the generation prompt opens the thinking; keeps: so does history."""

    def thoughts_of(message: dict[str, str], last: bool, opened: bool) -> list[int]:
        thoughts = words(message.get("reasoning_content", "")) if keeps or last else []
        if thoughts or (empty_blocks and last):
            return [THINK, LINE, *thoughts, LINE, CLOSE, LINE]
        return []

    def render(messages, generation=False, thinking=None):
        asked = max(i for i, m in enumerate(messages) if m["role"] == "user")
        found: list[int] = []
        for i, m in enumerate(messages):
            text = m["content"].split("</think>")[-1] if m["role"] == "assistant" else m["content"]
            thoughts = thoughts_of(m, i > asked, opens) if m["role"] == "assistant" else []
            found += [START, ROLES[m["role"]], LINE, *thoughts, *words(text), END, LINE]
        if generation:
            found += HEADER
            if thinking is False:
                found += [THINK, LINE, LINE, CLOSE, LINE]
            elif opens:
                found += [THINK, LINE]
        return found

    return render


OFF = Ending((*CLOSED, THINK, LINE, LINE, CLOSE, LINE), 5)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"opens": True}, [(2, True), (5, True)]),  # thinking opened, and forbidden: neither is kept
        ({"opens": False}, [(5, True), (0, False)]),  # the header is kept, what was thought isn't
        ({"opens": True, "keeps": True}, [(0, True), (5, True)]),
    ],
)
def test_a_template_says_what_the_next_turn_repeats(how: dict, expected: list[tuple[int, bool]]) -> None:
    found = {ending.tokens: ending.dropped for ending in endings_of(template(**how))}
    opened = (*CLOSED, THINK, LINE) if how["opens"] else CLOSED
    assert found == {opened: min(d for d, _ in expected), OFF.tokens: 5}
    opened_keeps = next(e.keeps_answer for e in endings_of(template(**how)) if e.tokens == opened)
    assert opened_keeps == bool(how.get("keeps"))


def test_a_template_without_thoughts_keeps_everything() -> None:
    def plain(messages, generation=False, thinking=None):
        said = [
            token
            for m in messages
            for token in (START, ROLES[m["role"]], LINE, *words(m["content"]), END, LINE)
        ]
        return [*said, *(HEADER if generation else ())]

    assert endings_of(plain) == (Ending(CLOSED, 0, keeps_answer=True),)


def test_a_template_that_fails_or_rewrites_messages_says_nothing() -> None:
    def refuses(messages, generation=False, thinking=None):
        raise ValueError("no")

    def rewrites(messages, generation=False, thinking=None):  # only the last message is written out
        return [*words(messages[-1]["content"]), END, LINE, *(HEADER if generation else ())]

    assert endings_of(refuses) == endings_of(rewrites) == ()


def test_the_longest_ending_that_a_prompt_has_counts() -> None:
    headers = MessageHeaders((HEADER,), (OFF, Ending((*CLOSED, THINK, LINE), 2), Ending(CLOSED, 0, False)))
    for ending in headers.endings:
        prompt = np.array([*range(50, 90), *ending.tokens])
        found = headers.input_end(prompt)
        assert (found.dropped, found.keeps_answer, found.known) == (ending.dropped, ending.keeps_answer, True)
        assert found.kind < 0
    assert MessageHeaders.from_dict(json.loads(json.dumps(asdict(headers)))) == headers


def test_without_an_ending_the_last_header_tells() -> None:
    headers = MessageHeaders(((START,),))
    assert headers.input_end(np.array([*range(50, 90), START, 60, 61])) == InputEnd(61, 2, True, known=False)
    assert headers.input_end(np.array([*range(50, 90), START])).dropped == 0
    assert headers.input_end(np.array([50, START, *range(60, 90)])) is None
    assert MessageHeaders().input_end(np.arange(50, 90)) is None


def test_two_partings_at_one_distance_are_enough() -> None:
    ends = InputEnds()
    first = ends.plan(7, False, None)
    assert first.guessed and first.distances == (GUESS_TOKENS,)
    ends.parted(first.number, 3)
    assert ends.plan(7, False, None).guessed
    ends.parted(first.number, 3)
    assert ends.plan(7, False, None).distances == (3,)
    assert ends.plan(8, False, None).distances == (3,)  # that ends otherwise: as others, until more is known
    for _ in range(FEW_PROMPTS):
        ends.plan(8, False, None)
    assert ends.plan(8, False, None).distances == ()
    assert ends.plan(7, True, None).distances == ()  # a call in a tool loop


def test_the_first_prompts_are_guessed_until_something_is_known() -> None:
    ends = InputEnds()
    guessed = [ends.plan(7, False, None).guessed for _ in range(GUESSED_PROMPTS + 2)]
    assert guessed == [True] * GUESSED_PROMPTS + [False] * 2
    ends = InputEnds()
    assert not ends.plan(7, False, InputEnd(-1, 2, True, known=True)).guessed
    first = ends.plan(7, False, None)
    ends.went_through(first.number, 1)  # a template that keeps everything
    assert first.guessed and not ends.plan(7, False, None).guessed


def test_at_larger_pages_all_partings_agree_on_a_distance() -> None:
    """The input ends 5 tokens before the prompt's; prompts of all lengths part at the page before."""
    ends, page = InputEnds(), 16
    for length in range(200, 232):
        number = ends.plan(7, False, None).number
        ends.parted(number, length - (length - 5) // page * page, page)
    assert ends.plan(7, False, None).distances == (5,)


def test_what_a_header_suggests_goes_where_answers_are_repeated() -> None:
    guess = InputEnd(7, 2, True, known=False)
    ends = InputEnds()
    one = ends.plan(7, False, guess)
    assert one.distances == (2,)
    ends.went_through(one.number, 1)
    assert ends.plan(7, False, guess).distances == ()
    known = InputEnd(-1, 2, True, known=True)
    one = ends.plan(7, False, known)
    for _ in range(1_000):
        ends.went_through(one.number, 1)
        assert ends.plan(7, False, known).distances == (2,)
    assert ends.plan(7, True, known).distances == ()


def test_last_token_states_go_where_none_serves() -> None:
    """For good: also when more prompts have been seen than are remembered."""
    ends, wanted = InputEnds(), []
    for token in range(1_000):
        prompt = ends.plan(7, False, None)
        wanted.append(ends.answered(prompt.number, token))
        ends.parted(prompt.number, 2)
    assert all(wanted[: FEW_ANSWERS - 1])
    later = wanted[FEW_ANSWERS:]
    assert [sum(later[at : at + TRIED_EACH]) for at in range(0, 960, TRIED_EACH)] == [1] * 60
    for token in range(40):
        ends.went_through(prompt.number, token)
    assert all(ends.answered(prompt.number, token) for token in range(TRIED_EACH))


@pytest.mark.parametrize("parts", [True, False])
def test_an_answer_that_ends_a_loop_is_told_from_calls(parts: bool) -> None:
    """Calls end with token 3, and prompts repeat them until the user's next one parts at the first call's input."""
    ends, calls, answers = InputEnds(), [], []
    for token in range(100, 200):
        first = ends.plan(7, False, None)
        ends.answered(first.number, 3)
        for _ in range(5):
            call = ends.plan(7, True, None)
            calls.append(ends.answered(call.number, 3))
            ends.went_through(call.number, 3)
        last = ends.plan(7, True, None)
        answers.append(ends.answered(last.number, token))
        if parts:
            ends.parted(first.number, 2)
    assert all(calls)
    assert all(answers[: FEW_ANSWERS - 1]) and (
        sum(answers[2 * FEW_ANSWERS :]) < 10 if parts else all(answers)
    )


def test_kept_classes_are_bounded() -> None:
    ends = InputEnds()
    numbers = [ends.plan(token, False, None).number for token in range(1_000)]
    ends.parted(numbers[0], 2)  # forgotten: no error
    again = [ends.plan(token, False, None).number for token in range(1_000 - KEPT_CLASSES, 1_000)]
    assert again == numbers[-KEPT_CLASSES:]
    assert ends.plan(999 - KEPT_CLASSES, False, None).number > numbers[-1]
