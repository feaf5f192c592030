"""Classes as data: every record's number has a name of its own, in the order of their groups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marconi_ext.policies.learned.classes import BASIC, FINE, KINDS, Classes

COUNTS = st.integers(0, 10**6)


@pytest.mark.parametrize("classes", [BASIC, FINE])
def test_names_are_told_apart_and_groups_ascend(classes: Classes) -> None:
    names = classes.names
    assert len(set(names)) == len(names)
    if classes.groups is not None:
        assert len(classes.groups) == len(names) and len(classes.prior) == classes.groups[-1] + 1
        assert set(np.diff(classes.groups)) <= {0, 1}


def test_classes_by_hand() -> None:
    """Of fewer than four tails nothing is said; a fork that is passed every 5 requests is between 4 and 16."""
    named = FINE.names
    assert named[FINE.fresh(3, 3)].endswith("unknown") and named[FINE.fresh(100, 2)].endswith("< 3%")
    assert named[FINE.fresh(4, 4)].endswith("more")
    assert named[FINE.tail(1)] == "tail, 1+ turns" and named[FINE.tail(99)] == "tail, 16+ turns"
    assert named[FINE.inner(1, 0)] == "branch, 1+ forks" and named[FINE.inner(7, 3)] == "placed, 2+ forks"
    assert named[FINE.often(5)] == "forked often, passed every 16"
    assert named[FINE.often(1e6)] == "forked often, passed rarely"
    assert named[FINE.input_end(0)] == "input end, no turn"


@given(forks=COUNTS, turns=COUNTS, kind=st.integers(0, len(KINDS) - 1), requests=st.floats(0, 1e9))
def test_every_record_has_a_class(forks: int, turns: int, kind: int, requests: float) -> None:
    tails = {FINE.fresh(forks, min(turns, forks)), FINE.tail(turns + 1)}
    others = {FINE.inner(forks, kind), FINE.often(requests), FINE.input_end(turns)}
    assert max(tails) < FINE.tails <= min(others) and max(others) < len(FINE.names)
