"""Which checkpoints an extend gets: lengths in, positions out."""

from hypothesis import given
from hypothesis import strategies as st

from marconi_ext.config import CheckpointKind, build_config
from sglang_hooks.planner import plan_extend

CONFIG = build_config({})


def positions(**changes: int | None) -> list[tuple[str, int]]:
    lengths = {
        "prefix_tokens": 10,
        "extend_end_tokens": 100,
        "prompt_tokens": 100,
        "branch_tokens": 40,
        "page_tokens": 1,
    } | changes
    return [(kind.value, position) for kind, position in plan_extend(CONFIG, **lengths)]


def test_branch_then_prompt_end() -> None:
    assert positions() == [("branch", 40), ("prompt-end", 100)]


def test_no_branch_where_nothing_more_is_cached() -> None:
    assert positions(branch_tokens=None) == [("prompt-end", 100)]


def test_chunked_prefill_saves_each_position_in_the_chunk_that_reaches_it() -> None:
    assert positions(extend_end_tokens=30) == []
    assert positions(prefix_tokens=30, extend_end_tokens=60) == [("branch", 40)]
    assert positions(prefix_tokens=60) == [("prompt-end", 100)]


def test_branch_on_the_chunk_end_belongs_to_that_chunk_only() -> None:
    assert positions(extend_end_tokens=40) == [("branch", 40)]
    assert positions(prefix_tokens=40) == [("prompt-end", 100)]


def test_pages_floor_positions() -> None:
    assert positions(page_tokens=16, prefix_tokens=0) == [("branch", 32), ("prompt-end", 96)]
    assert positions(page_tokens=64, prefix_tokens=64) == []


def test_one_state_where_branch_and_prompt_end_coincide() -> None:
    assert positions(branch_tokens=100) == [("branch", 100)]


def test_kinds_can_be_left_out() -> None:
    only_branch = build_config({"checkpoints": "branch"})
    lengths = {"prefix_tokens": 0, "extend_end_tokens": 9, "prompt_tokens": 9, "page_tokens": 1}
    assert plan_extend(only_branch, branch_tokens=5, **lengths) == [(CheckpointKind.BRANCH, 5)]
    assert plan_extend(build_config({"checkpoints": "last-token"}), branch_tokens=5, **lengths) == []


@given(
    prefix=st.integers(0, 300),
    extend=st.integers(1, 300),
    rest=st.integers(0, 300),
    branch=st.none() | st.integers(0, 900),
    page=st.sampled_from([1, 16, 64]),
)
def test_positions_are_distinct_page_multiples_inside_the_extend(
    prefix: int, extend: int, rest: int, branch: int | None, page: int
) -> None:
    wanted = plan_extend(
        CONFIG,
        prefix_tokens=prefix,
        extend_end_tokens=prefix + extend,
        prompt_tokens=prefix + extend + rest,
        branch_tokens=branch,
        page_tokens=page,
    )
    found = [position for _, position in wanted]
    assert found == sorted(set(found)) and len(found) <= 2
    assert all(prefix < position <= prefix + extend and position % page == 0 for position in found)
