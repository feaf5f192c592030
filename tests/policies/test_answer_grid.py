"""Where states inside answers lie: the mean against a count over all ends, and what is learned from partings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marconi_ext.policies.answer_grid import GRIDS, MIN_SAVED, best_grid, last_place, tokens_saved
from marconi_ext.policies.input_ends import FEW_PROMPTS, HALF_LIFE_PROMPTS, InputEnds


@given(st.sampled_from([3, *GRIDS]), st.integers(1, 300), st.data())
def test_the_mean_over_all_ends(grid: int, answer: int, data: st.DataObject) -> None:
    before_end = data.draw(st.integers(1, answer))
    saved = []
    for prompt in range(1_000, 1_000 + grid):
        place = last_place(prompt, prompt + answer, grid)
        serves = 0 < place <= prompt + answer - before_end
        saved.append(place - prompt if serves else 0)
    assert tokens_saved(grid, answer, before_end) == pytest.approx(sum(saved) / grid)


@pytest.mark.parametrize(
    ("partings", "grid"),
    [
        ([(80, 1)], 16),  # trimmed
        ([(400, 20)], 128),  # a call's arguments
        ([(400, 20), *5 * [(80, 1)]], 64),
        ([(80, 77)], 0),  # what was answered is dropped but for a header
        ([(10, 1)], 0),  # hardly anything to save
    ],
)
def test_the_grid_follows_from_where_prompts_part(partings: list[tuple[int, int]], grid: int) -> None:
    assert best_grid(partings) == grid
    if grid:
        saved = sum(tokens_saved(grid, *parting) for parting in partings)
        assert saved >= MIN_SAVED * len(partings)


def planned(ends: InputEnds, last_token: int = 7) -> int:
    """The class of a prompt that goes on from another one."""
    return ends.plan(last_token, True, None).number


def test_two_partings_open_a_class_and_time_closes_it() -> None:
    ends = InputEnds()
    number, other = planned(ends), planned(ends, 8)
    grids = []
    for _ in range(2):
        ends.parted_inside(number, 200, 3)
        grids.append(ends.answer_grid(number))
    assert grids == [0, 32] and ends.answer_grid(99) == 0
    assert ends.answer_grid(other) == 32  # a new class begins with what was seen of all
    for _ in range(FEW_PROMPTS):
        planned(ends, 8)
    assert ends.answer_grid(other) == 0
    for _ in range(HALF_LIFE_PROMPTS):
        planned(ends)
    assert ends.answer_grid(number) == 0


def test_answers_repeated_in_part_leave_no_last_state() -> None:
    ends, token = InputEnds(), 5
    wanted = []
    for _ in range(64):
        number = planned(ends)
        wanted.append(ends.answered(number, token))
        ends.parted_inside(number, 200, 3)
    assert all(wanted[:8]) and not all(wanted[16:]) and sum(wanted[32:]) <= 4
