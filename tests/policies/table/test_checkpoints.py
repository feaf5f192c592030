"""The table's owners and chains against a recount from the parents (`check`), whatever happens to its rows."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from marconi_ext.policies.table.checkpoints import CheckpointTable, Fate, Kind


class AnyHistory(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = CheckpointTable(2)  # so that it grows
        self.tick = 0

    def row(self, data) -> int:
        return data.draw(st.sampled_from(self.table.rows().tolist()))

    @rule(data=st.data(), splits=st.booleans())
    def add(self, data, splits):
        """Under any row, or between it and some of its children."""
        table = self.table
        self.tick += 1
        parent = data.draw(st.sampled_from([-1, *table.rows().tolist()]))
        children = [row for row in table.rows().tolist() if table.parent[row] == parent]
        depth = (int(table.depth[parent]) if parent >= 0 else 0) + data.draw(st.integers(1, 1000))
        deeper = [row for row in children if table.depth[row] > depth]
        below = data.draw(st.lists(st.sampled_from(deeper), unique=True)) if splits and deeper else []
        table.add(parent, depth, Kind.BRANCH, self.tick, below)

    @precondition(lambda self: len(self.table.rows()))
    @rule(data=st.data())
    def live_or_gone(self, data):
        row = self.row(data)
        if self.table.live[row]:
            self.table.set_gone(row, Fate.EVICTED)
        else:
            self.table.set_live(row, self.tick)

    @precondition(lambda self: len(self.table.rows()))
    @rule(data=st.data())
    def forget(self, data):
        self.table.forget(self.row(data))

    @precondition(lambda self: len(self.table.rows()) > 2)
    @rule(data=st.data())
    def place(self, data):
        """Elsewhere, under a shallower row that isn't below it, with deeper rows beside it below it."""
        table, row = self.table, self.row(data)
        higher = [r for r in table.rows().tolist() if table.depth[r] < table.depth[row]]
        parent = data.draw(st.sampled_from([-1, *higher]))
        beside = [
            r
            for r in table.rows().tolist()
            if r != row and table.parent[r] == parent and table.depth[r] > table.depth[row]
        ]
        below = data.draw(st.lists(st.sampled_from(beside), unique=True)) if beside else []
        table.place(row, parent, below)

    @precondition(lambda self: any(not self.table.children[row] for row in self.table.rows().tolist()))
    @rule(data=st.data(), tokens=st.integers(0, 1000))
    def deepen(self, data, tokens):
        """A row with none below, which isn't saved yet."""
        table = self.table
        row = data.draw(st.sampled_from([row for row in table.rows().tolist() if not table.children[row]]))
        table.deepen(row, int(table.depth[row]) + tokens)

    @invariant()
    def balances(self):
        self.table.check()


AnyHistory.TestCase.settings = settings(max_examples=120, stateful_step_count=30)
TestAnyHistory = AnyHistory.TestCase


def test_owners_follow_evictions() -> None:
    """shared (100) -> old tail (300) -> new tail (400), and shared -> other (1100); all live."""
    table = CheckpointTable(2)
    for parent, depth in ((-1, 100), (0, 300), (1, 400), (0, 1100)):
        table.set_live(table.add(parent, depth, Kind.LAST_TOKEN, 1), 1)
    table.set_gone(1, Fate.EVICTED)
    assert (table.owner[2], table.above[2]) == (0, 100)
    table.set_gone(0, Fate.EVICTED)
    assert table.above[[2, 3]].tolist() == [0, 0]
    table.set_live(1, 5)
    assert (table.above[2], table.above[3]) == (300, 0)
    table.check()
    table.forget(2)
    assert table.num_live == 2 and table.add(1, 500, Kind.BRANCH, 6) == 2  # the row is used again
    table.check()
