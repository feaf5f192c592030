"""The table of checkpoints: what a policy may know about every state that was ever offered.

One row a record. A row outlives its state: evicted and refused states stay as *ghosts* while their KV is held,
because requests that come back to a ghost say what it would have been worth. Rows form a tree like the tokens
they stand for, without the tokens. Columns are numpy arrays, so that a score is one vectorised pass.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from marconi_ext.policies.table.chains import Chains


class Kind(IntEnum):
    """Where in a sequence a state was taken. Compare with `column.item(row)`: numpy's scalars take 9 µs for it."""

    BRANCH = 0  # where a prompt leaves an earlier sequence
    LAST_TOKEN = 1  # after the last decoded token with KV
    PROMPT_END = 2
    BOUNDARY = 3  # where requests are expected to part, e.g. the end of a message inside the prompt
    GRID = 4  # a multiple of the engine's grid
    BLOCK = 5  # a multiple of the block size
    INPUT_END = 6  # the last token of a prompt that later ones repeat: see `input_ends.py`
    IN_ANSWER = 7  # inside an answer that later prompts repeat in part: see `answer_grid.py`


class Fate(IntEnum):
    """Why a row's state isn't there, or that it is."""

    NEVER = 0
    LIVE = 1
    EVICTED = 2
    REFUSED = 3
    DISPLACED = 4  # another position of the same extend was saved instead


_COLUMNS = {
    "live": bool,
    "kind": np.int8,
    "fate": np.int8,
    "depth": np.int64,
    "parent": np.int64,
    "branches": np.int32,
    "chain": np.int32,
    "owner": np.int64,
    "above": np.int64,
    "born": np.int64,
    "last_use": np.int64,
    "last_path": np.int64,
    "passed": np.int32,
    "uses": np.int32,
    "fanout": np.int32,
    "leaf_tokens": np.int64,
    "pins": np.int32,
    "prompt_tokens": np.int64,
    "prompt_class": np.int32,
    "answer_end": np.int64,
    "answered_tokens": np.int64,
    "reserved": bool,
    "tenant": np.int32,
}

FEW_ROWS = 16  # that cost less one by one than a vectorised pass
FEW_HELD = 8  # rows for each with a state, from which on to sort these costs less than to look at all


class CheckpointTable:
    """Rows are handed out by `add` and returned by `forget`; `size` bounds the rows in use."""

    live: np.ndarray
    kind: np.ndarray
    fate: np.ndarray
    depth: np.ndarray  # tokens from the root
    parent: np.ndarray  # row of the nearest record above, -1: none
    branches: np.ndarray  # records that have it for their parent
    chain: np.ndarray  # see `chains.py`
    owner: np.ndarray  # row of the nearest live state above, -1: none
    above: np.ndarray  # its depth, 0: none (tokens)
    born: np.ndarray  # tick
    last_use: np.ndarray  # tick at which it served, or was saved
    last_path: np.ndarray  # tick at which a request last went through it
    passed: np.ndarray  # requests that went through it
    uses: np.ndarray
    fanout: np.ndarray  # continuations held below it in the KV tree
    leaf_tokens: np.ndarray  # KV tokens that go with the state when it is evicted (a leaf's edge), else 0
    pins: np.ndarray
    prompt_tokens: np.ndarray  # of the last prompt that ends here, or less than a page below; 0: none does
    prompt_class: np.ndarray  # its class: see `input_ends.py`
    answer_end: np.ndarray  # the last token with KV of what was answered to it last; -1: nothing was
    answered_tokens: (
        np.ndarray
    )  # of that prompt with the answer, as far as it has KV; 0: nothing was answered
    reserved: np.ndarray  # an operator keeps it: see `reserves.py`
    tenant: np.ndarray  # whose requests saved it: see `reserves.py`

    def __init__(self, rows: int = 256) -> None:
        self.size = 0
        self.num_live = 0
        self._free: list[int] = []
        self.children: list[list[int]] = []
        for name, dtype in _COLUMNS.items():
            setattr(self, name, np.zeros(rows, dtype))
        self.in_use = np.zeros(rows, bool)
        self.held = np.zeros(rows, np.int64)  # the first `num_live`: rows with a state, in no order
        self._held_at: dict[int, int] = {}
        self._chains = Chains(self)

    def add(
        self, parent: int, depth: int, kind: Kind, tick: int, below: list[int] | tuple[int, ...] = ()
    ) -> int:
        """A record without a state under `parent` (-1: none). `below`: rows of `parent` that now hang under it."""
        row = self._free.pop() if self._free else self._grow()
        self.in_use[row] = True
        self.live[row] = False
        self.kind[row] = kind
        self.fate[row] = Fate.NEVER
        self.depth[row] = depth
        self.parent[row] = parent
        above = parent if parent < 0 or self.live[parent] else int(self.owner[parent])
        self.owner[row] = above
        self.above[row] = self.depth[above] if above >= 0 else 0
        self.born[row] = self.last_use[row] = self.last_path[row] = tick
        self.passed[row] = self.uses[row] = self.fanout[row] = self.leaf_tokens[row] = self.pins[row] = 0
        self.prompt_tokens[row] = self.prompt_class[row] = self.tenant[row] = 0
        self.answer_end[row] = -1
        self.answered_tokens[row] = 0
        self.reserved[row] = False
        self.children[row] = []
        self.branches[row] = 0
        strangers = [
            child for child in below if self.parent[child] != parent
        ]  # they hung under a row without a node
        for child in strangers:
            self._chains.cut(child)
        self._chains.add(row, below)
        for child in below:
            self._leave(child)
            self._join(child, row)
        self._join(row, parent)
        if strangers:
            self._rehang(row, above)
        return row

    def place(self, row: int, parent: int, below: list[int]) -> None:
        """Hang a row, known before its place in the tree was, under `parent`, and `below` under it."""
        if parent != self.parent[row]:
            self._chains.cut(row)
            self._leave(row)
            self._join(row, parent)
        for child in below:
            if self.parent[child] != row:
                self._chains.cut(child)
                self._leave(child)
                self._join(child, row)
        owner = parent if parent < 0 or self.live[parent] else int(self.owner[parent])
        self.owner[row] = owner
        self.above[row] = self.depth[owner] if owner >= 0 else 0
        self._rehang(row, row if self.live[row] else owner)

    def deepen(self, row: int, depth: int) -> None:
        """A row with none below stands for this many tokens from now on."""
        assert not self.children[row], f"row {row}: others are below it"
        self._chains.deepen(row, depth)
        self.depth[row] = depth

    def set_live(self, row: int, tick: int) -> None:
        """The row's state is held from now on."""
        self.live[row] = True
        self.fate[row] = Fate.LIVE
        self.last_use[row] = max(tick, self.last_use[row])
        self.held[self.num_live] = row
        self._held_at[row] = self.num_live
        self.num_live += 1
        self._rehang(row, row)

    def set_gone(self, row: int, fate: Fate) -> None:
        """The row's state was evicted, refused or displaced; the row stays as a ghost."""
        self.fate[row] = fate
        if self.live[row]:
            self.live[row] = False
            self.num_live -= 1
            at, last = self._held_at.pop(row), self.held.item(self.num_live)
            if last != row:  # it fills the gap
                self.held[at] = last
                self._held_at[last] = at
            self._rehang(row, self.owner.item(row))

    def forget(self, row: int) -> None:
        """The KV is gone, and the record with it. The row may be handed out again."""
        if self.live[row]:
            self.set_gone(row, Fate.EVICTED)
        parent = int(self.parent[row])
        self._chains.remove(row)
        self._leave(row)
        for child in self.children[row]:
            self._join(child, parent)
        self.children[row] = []
        self.in_use[row] = False
        self._free.append(row)

    def set_pins(self, row: int, pins: int) -> None:
        """So many hold the row's state where it is; a row with any isn't a candidate."""
        self.pins[row] = pins

    def is_pinned(self, row: int) -> bool:
        return self.pins.item(row) > 0

    def live_rows(self) -> np.ndarray:
        """Rows with a state, ascending: int64[num_live]."""
        if self.num_live * FEW_HELD < self.size:
            return np.sort(self.held[: self.num_live])
        return np.flatnonzero(self.live[: self.size])

    def rows(self) -> np.ndarray:
        """All rows in use, ascending."""
        return np.flatnonzero(self.in_use[: self.size])

    def check(self) -> None:
        """Recompute owners and counts from the parents."""
        rows = self.rows()
        self._chains.check()
        assert self.num_live == int(self.live[rows].sum()), "live states miscounted"
        assert not self.live[: self.size][~self.in_use[: self.size]].any(), "a free row is live"
        held = self.held[: self.num_live].tolist()
        assert sorted(held) == np.flatnonzero(self.live[: self.size]).tolist(), "states held are listed wrong"
        assert self._held_at == {row: at for at, row in enumerate(held)}, "a state is listed elsewhere"
        counted: dict[int, int | None] = {-1: -1}
        for row in rows[self.depth[rows].argsort(kind="stable")].tolist():  # parents first
            parent = self.parent.item(row)
            owner = counted[row] = parent if parent >= 0 and self.live[parent] else counted.get(parent)
            assert owner == self.owner[row], f"row {row}: owner {self.owner[row]}, counted {owner}"
            assert self.above[row] == (self.depth[owner] if owner >= 0 else 0), (
                f"row {row}: wrong depth above"
            )
            if parent >= 0:
                assert row in self.children[parent], f"row {row} is not among its parent's children"
                assert self.depth[parent] < self.depth[row], f"row {row} is above its parent"
            assert self.branches[row] == len(self.children[row]), f"row {row}: children miscounted"

    def _leave(self, row: int) -> None:
        parent = int(self.parent[row])
        if parent >= 0:
            self.children[parent].remove(row)
            self.branches[parent] -= 1

    def _join(self, row: int, parent: int) -> None:
        self.parent[row] = parent
        if parent >= 0:
            self.children[parent].append(row)
            self.branches[parent] += 1

    def _rehang(self, row: int, owner: int) -> None:
        """Give all rows below `row`, down to the next live ones, a new owner."""
        above = self.depth[owner] if owner >= 0 else 0
        few, stack = FEW_ROWS, list(self.children[row])
        while stack and few:
            few -= 1
            child = stack.pop()
            self.owner[child] = owner
            self.above[child] = above
            if not self.live[child]:
                stack.extend(self.children[child])
        if stack:
            for rows in self._chains.down_to_live(row):
                self.owner[rows] = owner
                self.above[rows] = above

    def _grow(self) -> int:
        if self.size == len(self.live):
            for name in (*_COLUMNS, "in_use", "held"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
        self.size += 1
        self.children.append([])
        return self.size - 1
