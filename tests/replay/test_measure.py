"""The figures of a run worked by hand."""

import numpy as np

from marconi_ext.replay.client import Answer
from marconi_ext.replay.measure import answers_that_differ, measure, yardstick
from marconi_ext.replay.schedule import Item
from marconi_ext.replay.sender import Record, Run
from marconi_ext.traces.request import token_array


def record(
    number: int, prompt: list[int], answer: list[int], cached: int, *, ttft_s=0.1, status="ok"
) -> Record:
    sent_s = 10.0 * number
    outcome = Answer(
        status, "", sent_s, sent_s + ttft_s, sent_s + 1, len(prompt), cached, token_array(answer)
    )
    return Record("s", number, token_array(prompt), outcome)


def unsent(count: int) -> list[Item]:
    return [Item("s", number, 0.0, 1) for number in range(count)]


def test_loss_and_its_causes() -> None:
    run = Run(
        [
            record(0, [1, 2, 3, 4, 5], [6, 7], 0, ttft_s=0.1),
            record(
                1, [1, 2, 3, 4, 5, 6, 7, 8], [9], 4, ttft_s=0.2
            ),  # ideal 6, a state lies there: 2 avoidable
            record(2, [1, 2, 3, 30, 31], [9], 0, ttft_s=0.3),  # ideal 3, never seen before: first divergence
            record(3, [1, 2, 3, 40], [9], 3, ttft_s=0.4),
        ],
    )
    figures = measure([run])
    assert (figures.prompt_tokens, figures.cached_tokens, figures.ideal_tokens) == (22, 7, 12)
    assert figures.first_divergence == round(100 * 3 / 22, 4)
    assert figures.avoidable == round(100 * 2 / 22, 4)
    assert figures.state_limited_loss == round(100 * 5 / 22, 4)
    assert (figures.prefilled_tokens, figures.prefill_ratio) == (15, 1.5)
    assert (figures.ttft_p50_ms, figures.duration_s) == (250.0, 31.0)


def test_each_run_starts_with_an_empty_cache() -> None:
    run = Run([record(0, [1, 2, 3], [4], 0)])
    assert measure([run, run]).ideal_tokens == 0


def test_failures_are_counted_and_left_out() -> None:
    run = Run(
        [record(0, [1, 2, 3], [4], 0), record(1, [1, 2, 3, 4], [], 0, status="http")],
        left=unsent(7),
    )
    figures = measure([run])
    assert (figures.requests, figures.failed, figures.unsent, figures.prompt_tokens) == (1, 1, 7, 3)


def test_nothing_answered_is_no_division_by_zero() -> None:
    figures = measure([Run([], left=unsent(3))])
    assert (figures.requests, figures.unsent, figures.state_limited_loss, figures.prefill_ratio) == (
        0,
        3,
        0,
        0,
    )


def test_more_cached_than_was_known_is_no_negative_loss() -> None:
    run = Run([record(0, [1, 2, 3], [4], 2)])
    assert measure([run]).state_limited_loss == 0


def test_answers_are_compared_on_equal_prompts_only() -> None:
    ours = Run([record(0, [1, 2], [3], 0), record(1, [1, 2, 3], [4], 0)])
    other = Run([record(0, [1, 2], [9], 0), record(1, [1, 2, 9], [5], 0)])
    assert answers_that_differ(ours, ours) == 0
    assert answers_that_differ(ours, other) == 1
    assert isinstance(np.int64(answers_that_differ(ours, other)).item(), int)


def test_what_was_cached_before_the_run_raises_no_ideal() -> None:
    run = Run(
        [
            record(0, [1, 2, 3, 4, 5], [6, 7], 4),  # nothing was asked before: warm
            record(1, [1, 2, 3, 4, 5, 6, 7, 8], [9], 7),  # 6 when it was sent; 7 can be explained
            record(2, [1, 2, 3, 30, 31], [9], 4),  # 3 are explained
        ],
    )
    found = [reusable for _, reusable in yardstick(run, 1)]
    assert [r.ideal_tokens for r in found] == [0, 6, 3]
    assert [r.warm_tokens for r in found] == [4, 0, 1]
    assert [r.ideal_tokens for _, r in yardstick(Run(run.records[:1]), 1)] == [0]


def test_what_requests_in_flight_left_is_not_from_before() -> None:
    early = record(0, [1, 2, 3, 4], [9], 0, ttft_s=20)  # its first token comes after the next was sent
    later = record(1, [1, 2, 3, 5], [9], 3)
    assert [r.ideal_tokens for _, r in yardstick(Run([early, later]), 1)] == [0, 3]
    both = yardstick(Run([record(0, [1, 2, 3, 4], [9], 3, ttft_s=15), record(1, [1, 2, 3, 5], [9], 0)]), 1)
    assert [(r.ideal_tokens, r.warm_tokens) for _, r in both] == [(3, 0), (0, 0)]
    failed = record(0, [1, 2, 3, 4], [], 0, status="timeout")
    ((_, reusable),) = yardstick(Run([failed, later]), 1)
    assert (reusable.ideal_tokens, reusable.warm_tokens) == (3, 0)
    ((_, alone),) = yardstick(Run([later]), 1)
    assert (alone.ideal_tokens, alone.warm_tokens) == (0, 3)
