"""Where extends are cut: every checkpoint is saved once, from a state after exactly its tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_hooks.recurrence.piece_plan import MAX_CUTS, choose_cuts, forked_tokens, plan_pieces


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], list[int], list[int], int]:
    lengths = draw(st.lists(st.integers(0, 40), min_size=1, max_size=5))
    owners = [row for row, length in enumerate(lengths) if length]
    picks = draw(st.lists(st.sampled_from(owners), max_size=9)) if owners else []
    offsets = [draw(st.integers(1, lengths[row])) for row in picks]
    return lengths, picks, offsets, draw(st.sampled_from([0, 5, 20, 1_000]))


@given(batches())
def test_every_state_is_the_one_after_its_tokens(batch: tuple[list[int], list[int], list[int], int]) -> None:
    """Run the plan on states that are counts of tokens."""
    lengths, rows, offsets, budget = batch
    plan = plan_pieces(lengths, rows, offsets, fork_tokens=budget)
    running, saved = [0] * len(lengths), {}
    seen: list[tuple[int, int]] = []
    for round_ in plan.rounds:
        for step in round_.before:
            saved[step.checkpoint] = running[step.row]
        for number, span in enumerate(round_.spans):
            assert (span.checkpoint is None) == (number < round_.pieces)
            if span.checkpoint is None:
                assert running[span.row] == span.start
                running[span.row] = span.stop
                seen.append((span.row, span.start))
            else:
                assert saved[span.checkpoint] == span.start
                saved[span.checkpoint] = span.stop
        for step in round_.after:
            source = step.source_checkpoint
            saved[step.checkpoint] = running[step.row] if source is None else saved[source]
    for step in plan.at_end:
        saved[step.checkpoint] = running[step.row]
    assert running == lengths
    assert len(seen) == len(set(seen))
    assert [saved[c] for c in range(len(offsets))] == offsets
    assert plan.cuts <= MAX_CUTS


def test_a_checkpoint_at_the_end_costs_a_copy_alone() -> None:
    plan = plan_pieces([10, 7], [0, 1], [10, 7])
    assert plan.plain
    assert len(plan.at_end) == 2


def test_few_tokens_are_forked_and_many_cut() -> None:
    assert choose_cuts([100]) == []
    assert choose_cuts([5_000]) == [5_000]
    assert choose_cuts([5_000, 5_010]) == [5_000]  # the second repeats ten tokens
    assert len(choose_cuts(range(1_000, 9_000, 1_000))) == MAX_CUTS
    assert forked_tokens([100, 300, 900], [300]) == 100 + 600


def test_an_offset_outside_its_extend_is_refused() -> None:
    for offset in (0, 11):
        with pytest.raises(ValueError, match="offset"):
            plan_pieces([10], [0], [offset])
