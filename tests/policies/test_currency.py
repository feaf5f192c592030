"""What hits are worth and states cost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.table.checkpoints import CheckpointTable, Kind

DEPTHS = st.lists(st.integers(0, 10**6), min_size=3, max_size=3).map(sorted)
FACTORS = st.floats(0, 1e12)


@given(depths=DEPTHS, linear=FACTORS, quadratic=FACTORS)
def test_two_states_are_worth_what_the_deeper_one_is(depths, linear, quadratic) -> None:
    above, middle, depth = depths
    money = Currency(linear, quadratic)
    parts = money.worth(depth, middle) + money.worth(middle, above)
    assert parts == pytest.approx(money.worth(depth, above), rel=1e-9)


@given(depths=DEPTHS, linear=FACTORS, quadratic=FACTORS)
def test_one_state_and_many_agree_to_the_bit(depths, linear, quadratic) -> None:
    above, _, depth = depths
    money = Currency(linear, quadratic)
    assert money.worth(np.array([depth]), np.array([above])).item() == money.worth(depth, above)


def test_costs_by_hand() -> None:
    """A leaf of 300 tokens: evicting it frees its state and its last piece of KV; in place it holds all KV up to the
    state above. The inner state holds its own bytes alone."""
    table, money = CheckpointTable(2), Currency(state_bytes=1000.0, kv_bytes_per_token=2.0)
    inner = table.add(-1, 100, Kind.BRANCH, 1)
    leaf = table.add(inner, 300, Kind.LAST_TOKEN, 1)
    for row in (inner, leaf):
        table.set_live(row, 1)
    table.leaf_tokens[leaf] = 150
    rows = np.array([inner, leaf])
    assert money.cost_bytes(table, rows).tolist() == [1000, 1300]
    assert money.whole_cost_bytes(table, rows).tolist() == [1000, 1400]
    assert money.whole_cost_bytes(table, leaf) == 1400
    assert Currency(state_bytes=7.0).whole_cost_bytes(table, rows) == 7
