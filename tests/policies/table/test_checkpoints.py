"""The book's owners and chains against a recount from the parents (`check`), whatever happens to its rows."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from marconi_ext.policies.table.checkpoints import CheckpointBook, Fate, Kind


class AnyHistory(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.book = CheckpointBook(2)  # so that it grows
        self.tick = 0

    def row(self, data) -> int:
        return data.draw(st.sampled_from(self.book.rows().tolist()))

    @rule(data=st.data(), splits=st.booleans())
    def add(self, data, splits):
        """Under any row, or between it and some of its children."""
        book = self.book
        self.tick += 1
        parent = data.draw(st.sampled_from([-1, *book.rows().tolist()]))
        children = [row for row in book.rows().tolist() if book.parent[row] == parent]
        depth = (int(book.depth[parent]) if parent >= 0 else 0) + data.draw(st.integers(1, 1000))
        deeper = [row for row in children if book.depth[row] > depth]
        below = data.draw(st.lists(st.sampled_from(deeper), unique=True)) if splits and deeper else []
        book.add(parent, depth, Kind.BRANCH, self.tick, below)

    @precondition(lambda self: len(self.book.rows()))
    @rule(data=st.data())
    def live_or_gone(self, data):
        row = self.row(data)
        if self.book.live[row]:
            self.book.set_gone(row, Fate.EVICTED)
        else:
            self.book.set_live(row, self.tick)

    @precondition(lambda self: len(self.book.rows()))
    @rule(data=st.data())
    def forget(self, data):
        self.book.forget(self.row(data))

    @precondition(lambda self: len(self.book.rows()) > 2)
    @rule(data=st.data())
    def place(self, data):
        """Elsewhere, under a shallower row that isn't below it, with deeper rows beside it below it."""
        book, row = self.book, self.row(data)
        higher = [r for r in book.rows().tolist() if book.depth[r] < book.depth[row]]
        parent = data.draw(st.sampled_from([-1, *higher]))
        beside = [
            r
            for r in book.rows().tolist()
            if r != row and book.parent[r] == parent and book.depth[r] > book.depth[row]
        ]
        below = data.draw(st.lists(st.sampled_from(beside), unique=True)) if beside else []
        book.place(row, parent, below)

    @invariant()
    def balances(self):
        self.book.check()


AnyHistory.TestCase.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
TestAnyHistory = AnyHistory.TestCase


def test_a_long_path_is_one_chain_whatever_is_saved_on_it() -> None:
    book, row = CheckpointBook(), -1
    for i in range(300):
        row = book.add(row, i + 1, Kind.BLOCK, i)
    book.set_live(150, 300)
    side = book.add(200, 1000, Kind.BLOCK, 301)
    assert len({*book.chain[:300].tolist()}) == 1 and book.chain[side] != book.chain[0]
    assert book.owner[:301].tolist() == [-1] * 151 + [150] * 150
    book.set_gone(150, Fate.EVICTED)
    assert (book.owner[:301] == -1).all()
