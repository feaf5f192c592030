"""The yardsticks on traces worked by hand, and against definitions applied literally."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marconi_ext.results.ideal import IdealCache, Reusable, Served, reusable_in_run, split_loss
from marconi_ext.traces import Request, synthetic


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


def ask(prompt: list[int], answer: list[int] = ()) -> Request:
    return Request("s", 0, 0.0, ids(*prompt), ids(*answer))


def in_order(requests: Iterable[Request], page_size: int = 1) -> list[Reusable]:
    cache = IdealCache(page_size)
    return [cache.serve(request) for request in requests]


def reuse(*requests: Request, page_size: int = 1) -> list[tuple[int, int]]:
    return [(r.ideal_tokens, r.state_tokens) for r in in_order(requests, page_size)]


def test_next_turn_reuses_all_but_the_answers_last_token() -> None:
    # [1 2 3] + [4 5]: 5 was never fed back, so 4 tokens have KV, and the last-token state is after them.
    assert reuse(ask([1, 2, 3], [4, 5]), ask([1, 2, 3, 4, 5, 6])) == [(0, 0), (4, 4)]


def test_one_token_answer_adds_nothing_to_the_prompts_end() -> None:
    assert reuse(ask([1, 2, 3], [4]), ask([1, 2, 3, 4, 6])) == [(0, 0), (3, 2)]


def test_a_branch_costs_its_second_visitor_and_serves_the_third() -> None:
    a, b, c = ask([1, 2, 3, 10, 11]), ask([1, 2, 3, 20, 21]), ask([1, 2, 3, 30])
    assert reuse(a, b, c) == [(0, 0), (3, 0), (3, 3)]


def test_branches_one_token_apart_are_two_branches() -> None:
    requests = [ask([1, 2, 3, 4, 5]), ask([1, 2, 3, 9]), ask([1, 2, 8]), ask([1, 2, 3, 7])]
    assert reuse(*requests) == [(0, 0), (3, 0), (2, 0), (3, 3)]


def test_a_repeated_prompt_is_capped_one_token_short() -> None:
    assert reuse(ask([1, 2, 3]), ask([1, 2, 3]), ask([1, 2, 3])) == [(0, 0), (2, 2), (2, 2)]


def test_an_answer_that_is_dropped_leaves_the_prompts_end() -> None:
    assert reuse(ask([1, 2], [7, 8, 9]), ask([1, 2, 5, 6])) == [(0, 0), (2, 1)]


def test_pages_floor_reuse_and_states() -> None:
    first, second = ask(list(range(1, 11)), [20, 21]), ask([*range(1, 11), 20, 21, 22])
    assert reuse(first, second, page_size=4) == [(0, 0), (8, 8)]
    assert reuse(ask([1, 2, 3, 4, 5, 6, 7]), ask([1, 2, 3, 4, 5, 6, 7, 8, 9]), page_size=4) == [
        (0, 0),
        (4, 4),
    ]


def test_when_prompts_and_answers_of_a_run_begin_to_count() -> None:
    prompt, answer, follow_up = ids(1, 2, 3), ids(4, 5), ids(1, 2, 3, 4, 5, 6)

    def second_sent_at(sent_s: float) -> int:
        first = Served(prompt, answer, 0.0, 1.0, 2.0)
        return reusable_in_run([first, Served(follow_up, ids(7), sent_s, 9.0, 9.5)])[1].ideal_tokens

    assert [second_sent_at(s) for s in (0.5, 1.0, 1.5, 2.0)] == [0, 3, 3, 4]
    with pytest.raises(ValueError, match="before it was sent"):
        reusable_in_run([Served(prompt, answer, 5.0, 1.0, 6.0)])


def test_in_a_run_one_after_another_equals_in_order() -> None:
    requests = list(synthetic("fork", sessions=3))
    served = [
        Served(r.input_ids, r.output_ids, 3.0 * i, 3.0 * i + 1, 3.0 * i + 2) for i, r in enumerate(requests)
    ]
    assert reusable_in_run(served) == in_order(requests)


@pytest.mark.parametrize(
    ("cached", "first", "avoidable"), [(10, 0, 0), (12, 0, 0), (7, 3, 0), (6, 4, 0), (2, 4, 4)]
)
def test_loss_is_split_by_cause(cached: int, first: int, avoidable: int) -> None:
    loss = split_loss(Reusable(ideal_tokens=10, state_tokens=6), cached)
    assert (loss.first_divergence_tokens, loss.avoidable_tokens) == (first, avoidable)
    assert first + avoidable == max(0, 10 - cached)


word = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@given(st.lists(st.tuples(word, st.lists(st.integers(0, 2), max_size=4)), max_size=12))
def test_against_the_definitions_taken_literally(trace: list[tuple[list[int], list[int]]]) -> None:
    def shared(a: list[int], b: list[int]) -> int:
        return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

    kv: list[list[int]] = []
    states: set[tuple[int, ...]] = set()
    cache = IdealCache()
    for prompt, answer in trace:
        hit = max((min(shared(prompt, seen), len(prompt) - 1) for seen in kv), default=0)
        state = max((n for n in range(1, hit + 1) if tuple(prompt[:n]) in states), default=0)
        found = cache.serve(ask(prompt, answer))
        assert (found.ideal_tokens, found.state_tokens) == (hit, state)
        whole = prompt + answer[:-1]
        kv.append(whole)
        states |= {tuple(prompt[:hit]), tuple(prompt[:-1])} | ({tuple(whole)} if len(answer) > 1 else set())
