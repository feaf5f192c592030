"""The unbounded tree against a list of everything inserted and a set of marks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marconi_ext.results.prefix_tree import PrefixTree, common_prefix

words = st.lists(st.integers(0, 2), max_size=8)


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


@pytest.mark.parametrize(
    ("a", "b", "n"),
    [((), (), 0), ((1,), (), 0), ((1, 2), (1, 2, 3), 2), ((1, 2), (1, 3), 1), ((2,), (1,), 0)],
)
def test_common_prefix(a, b, n: int) -> None:
    assert common_prefix(ids(*a), ids(*b)) == common_prefix(ids(*b), ids(*a)) == n


@given(st.lists(st.tuples(words, words, st.integers(0, 8))))
def test_against_brute_force(steps: list[tuple[list[int], list[int], int]]) -> None:
    tree, seen, marks = PrefixTree(), [], set()
    for word, query, cut in steps:
        tree.insert(ids(*word))
        seen.append(word)
        if word[:cut]:
            tree.mark(ids(*word[:cut]))
            marks.add(tuple(word[:cut]))
        tree.check()
        depth = max(common_prefix(ids(*query), ids(*w)) for w in seen)
        deepest = max((n for n in range(depth + 1) if tuple(query[:n]) in marks), default=0)
        assert tree.lookup(ids(*query)) == (depth, deepest)


def test_callers_may_reuse_their_array() -> None:
    tree, array = PrefixTree(), ids(1, 2, 3)
    tree.insert(array)
    array[:] = 9
    assert tree.lookup(ids(1, 2, 3, 4)) == (3, 0)
