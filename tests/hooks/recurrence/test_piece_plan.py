"""Where extends are cut: every checkpoint is saved once, from a state after exactly its tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_hooks.recurrence.piece_plan import MAX_CUTS, choose_cuts, forked_tokens, plan_pieces


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], list[int], list[int], int, int | None]:
    lengths = draw(st.lists(st.integers(0, 40), min_size=1, max_size=5))
    owners = [row for row, length in enumerate(lengths) if length]
    picks = draw(st.lists(st.sampled_from(owners), max_size=9)) if owners else []
    offsets = [draw(st.integers(1, lengths[row]) | st.just(max(lengths[row] - 1, 1))) for row in picks]
    bounds = draw(st.sampled_from([0, 5, 20, 1_000])), draw(st.sampled_from([None, 0, 30]))
    return lengths, picks, offsets, *bounds


@given(batches())
def test_every_state_is_the_one_after_its_tokens(
    batch: tuple[list[int], list[int], list[int], int, int | None],
) -> None:
    """Run the plan on states that are counts of tokens."""
    lengths, rows, offsets, budget, step_tokens = batch
    plan = plan_pieces(lengths, rows, offsets, fork_tokens=budget, step_tokens=step_tokens)
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
    for number, round_ in enumerate(plan.rounds):
        alone = [(span.start, span.stop) for span in round_.spans]
        assert not round_.is_step or alone == [(lengths[s.row] - 1, lengths[s.row]) for s in round_.spans]
        assert not round_.is_step or number == len(plan.rounds) - 1


def test_last_tokens_are_one_round_however_the_rest_is_cut() -> None:
    plan = plan_pieces([900, 70, 5], [0, 0, 1], [400, 899, 69], step_tokens=64)
    assert (plan.cuts, plan.steps, plan.forked_tokens) == (1, 1, 0)
    assert [(s.row, s.start, s.stop) for s in plan.rounds[-1].spans] == [(0, 899, 900), (1, 69, 70)]
    assert [(c.checkpoint, c.row) for c in plan.rounds[0].after] == [(0, 0), (2, 1)]


def test_few_tokens_are_forked_rather_than_stepped() -> None:
    for lengths, steps in (([40], 0), ([65], 0), ([66], 1), ([40, 40], 1)):
        ends = [length - 1 for length in lengths]
        plan = plan_pieces(lengths, range(len(lengths)), ends, step_tokens=64)
        assert (plan.steps, plan.forked_tokens) == (steps, 0 if steps else sum(ends))
    assert plan_pieces([900], [0], [899]).steps == 0, "without a step"


def test_no_step_after_a_cut_just_before_it() -> None:
    plan = plan_pieces([900], [0, 0], [860, 899], step_tokens=64)
    assert (plan.cuts, plan.steps, plan.forked_tokens) == (1, 0, 39)


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
