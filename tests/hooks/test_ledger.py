"""Every slot that enters the ledger leaves it exactly once."""

from hypothesis import given
from hypothesis import strategies as st

from marconi_ext.config import CheckpointKind
from sglang_hooks.ledger import CheckpointLedger, PendingCheckpoint

BRANCH = CheckpointKind.BRANCH


def test_only_written_checkpoints_are_published_shallow_first() -> None:
    ledger = CheckpointLedger()
    deep, shallow = PendingCheckpoint(BRANCH, 9, slot=1, written=True), PendingCheckpoint(BRANCH, 4, slot=2)
    ledger.add("a", deep)
    ledger.add("a", shallow)
    assert ledger.unwritten("a") == [shallow]
    assert ledger.take_written_up_to("a", 8) == []
    shallow.written = True
    assert ledger.take_written_up_to("a", 9) == [shallow, deep]
    assert ledger.held_slots == 0


def test_a_released_request_gives_back_all_it_holds() -> None:
    ledger = CheckpointLedger()
    ledger.add("a", PendingCheckpoint(BRANCH, 4, slot=2))
    ledger.add("b", PendingCheckpoint(BRANCH, 4, slot=3))
    assert [c.slot for c in ledger.take("a")] == [2]
    assert ledger.take("a") == []
    assert ledger.held_slots == 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "write", "publish", "release"]), st.sampled_from("ab"), st.integers(1, 9)
        ),
        max_size=40,
    )
)
def test_slots_are_conserved(steps: list[tuple[str, str, int]]) -> None:
    ledger, added, left = CheckpointLedger(), 0, []
    for action, request, tokens in steps:
        if action == "add":
            ledger.add(request, PendingCheckpoint(BRANCH, tokens, slot=added))
            added += 1
        elif action == "write":
            for checkpoint in ledger.unwritten(request):
                checkpoint.written = True
        elif action == "publish":
            left += [c.slot for c in ledger.take_written_up_to(request, tokens)]
        else:
            left += [c.slot for c in ledger.take(request)]
        assert len(left) == len(set(left))
        assert ledger.held_slots + len(left) == added
