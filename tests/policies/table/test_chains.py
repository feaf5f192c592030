"""Rows in chains, so that a path is changed in one step."""

from itertools import pairwise

import hypothesis.strategies as st
from hypothesis import given, settings

from marconi_ext.policies.table.checkpoints import CheckpointTable, Fate, Kind


def test_a_long_path_is_one_chain_whatever_is_saved_on_it() -> None:
    table, row = CheckpointTable(), -1
    for i in range(300):
        row = table.add(row, i + 1, Kind.BLOCK, i)
    table.set_live(150, 300)
    side = table.add(200, 1000, Kind.BLOCK, 301)
    assert len({*table.chain[:300].tolist()}) == 1 and table.chain[side] != table.chain[0]
    assert table.owner[:301].tolist() == [-1] * 151 + [150] * 150
    table.set_gone(150, Fate.EVICTED)
    assert (table.owner[:301] == -1).all()


@settings(max_examples=60)
@given(steps=st.lists(st.tuples(st.floats(0, 0.999), st.sampled_from("aaafm")), max_size=60))
def test_chains_hold_each_row_once_and_run_downwards(steps: list[tuple[float, str]]) -> None:
    """Rows are added under any other, forgotten, and moved under the root."""
    table = CheckpointTable(2)
    for at, step in steps:
        rows = table.rows().tolist()
        row = rows[int(at * len(rows))] if rows else -1
        if step == "a":
            table.add(row, 1 + (table.depth.item(row) if row >= 0 else 0), Kind.BRANCH, 1)
        elif row >= 0 and step == "f" and not table.children[row]:
            table.forget(row)
        elif row >= 0 and step == "m":
            table.place(row, -1, [])
        chains: dict[int, list[int]] = {}
        for row in sorted(table.rows().tolist(), key=table.depth.item):
            chains.setdefault(table.chain.item(row), []).append(row)
        for rows in chains.values():
            assert all(table.parent[lower] == upper for upper, lower in pairwise(rows))
