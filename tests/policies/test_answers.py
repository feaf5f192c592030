"""Which answers are repeated, by their last token."""

from __future__ import annotations

from marconi_ext.policies.answers import FEW_ANSWERS, HALF_LIFE_ANSWERS, KEPT_TOKENS, TRIED_EACH, Answers

MANY = 1_000.0  # answers that prompts were seen to drop


def ended(answers: Answers, token: int, dropped: float = MANY) -> int:
    """Of so many answers as one is tried among, how many states would be saved."""
    return sum(answers.ended(token, dropped) for _ in range(TRIED_EACH))


def test_a_token_whose_answers_are_never_repeated() -> None:
    answers = Answers()
    for _ in range(8):
        for _ in range(TRIED_EACH):
            answers.ended(1, MANY)
            answers.repeated(1)
    assert ended(answers, 1) == TRIED_EACH
    assert ended(answers, 2) == TRIED_EACH  # few as yet
    assert [ended(answers, 2) for _ in range(3)] == [1, 1, 1]
    assert ended(answers, 1) == TRIED_EACH


def test_rare_tokens_are_counted_together() -> None:
    answers = Answers()
    wanted = []
    for token in range(100, 200):
        assert answers.ended(1, MANY)
        answers.repeated(1)
        wanted.append(answers.ended(token, MANY))
    assert all(wanted[: FEW_ANSWERS - 1]) and sum(wanted[2 * FEW_ANSWERS :]) < 10
    assert len(answers.by_token) <= KEPT_TOKENS


def test_answers_that_nobody_dropped_may_be_repeated_yet() -> None:
    answers = Answers()
    assert [ended(answers, 1, dropped=1.0) for _ in range(4)] == [TRIED_EACH] * 4
    assert ended(answers, 1, dropped=10.0) == 1
    assert ended(answers, 1, dropped=1.0) == TRIED_EACH


def test_what_is_repeated_again_is_saved_again() -> None:
    answers = Answers()
    for _ in range(3 * HALF_LIFE_ANSWERS):
        answers.ended(1, MANY)
    assert ended(answers, 1) == 1
    for _ in range(FEW_ANSWERS):
        answers.repeated(1)
    assert ended(answers, 1) == TRIED_EACH
