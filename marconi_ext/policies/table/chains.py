"""Cuts the table's tree of rows into chains, so that whole paths are changed in one vectorised step.

A chain is a path downwards: each row but its first is a child of the one before. Where rows have one child, as along
a conversation, a subtree has few chains, however long they are.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import Protocol

import numpy as np


class RowTree(Protocol):
    """What chains ask of the table whose rows they cut: its columns by row, and the children of each."""

    chain: np.ndarray
    parent: np.ndarray
    depth: np.ndarray
    live: np.ndarray
    branches: np.ndarray
    children: list[list[int]]

    def rows(self) -> np.ndarray: ...


class Chains:
    """Of one table, which says what happens to its rows; `table.chain` has each row's chain."""

    def __init__(self, table: RowTree) -> None:
        self._table = table
        self._rows: list[array] = []  # of each chain, downwards
        self._depths: list[array] = []  # theirs, in tokens
        self._free: list[int] = []

    def add(self, row: int, below: list[int] | tuple[int, ...]) -> None:
        """A new row, between its parent and that one's children `below`."""
        chain, parent = self._table.chain, int(self._table.parent[row])
        upper = int(chain[parent]) if parent >= 0 else -1
        if upper >= 0 and any(chain[child] == upper for child in below):
            self._insert(upper, self._at(parent) + 1, row)
        elif below:
            self._insert(int(chain[below[0]]), 0, row)
        elif upper >= 0 and self._rows[upper][-1] == parent:
            self._insert(upper, len(self._rows[upper]), row)
        else:
            self._insert(self._new(), 0, row)

    def cut(self, row: int) -> None:
        """`row` goes elsewhere, with all that is below it."""
        chain, at = int(self._table.chain[row]), self._at(row)
        if at == 0:
            return
        new = self._new()
        for column in (self._rows, self._depths):
            column[new] = column[chain][at:]
            del column[chain][at:]
        self._table.chain[self._rows[new]] = new

    def deepen(self, row: int, depth: int) -> None:
        """`row`, below which there is none, is farther down from now on; the table still has the old depth."""
        self._depths[self._table.chain[row]][self._at(row)] = depth

    def remove(self, row: int) -> None:
        """`row` goes; its children become its parent's."""
        chain, at = int(self._table.chain[row]), self._at(row)
        del self._rows[chain][at], self._depths[chain][at]
        if not self._rows[chain]:
            self._free.append(chain)

    def down_to_live(self, row: int) -> Iterator[np.ndarray]:
        """All rows below `row` with no live one between, in a few batches: int32[n]."""
        after = self._rows[self._table.chain[row]][self._at(row) + 1 :]
        pieces = [after, *self._side_chains(row)]
        while pieces := list(filter(len, pieces)):
            rows, forks = self._reached(pieces)
            yield rows
            pieces = [piece for fork in forks for piece in self._side_chains(fork)]

    def check(self) -> None:
        """Every row is in its chain, and every chain is a path."""
        table = self._table
        rows = table.rows().tolist()
        assert sum(map(len, self._rows)) == len(rows), "a chain has a row too many, or lacks one"
        for row in rows:
            held, at = self._rows[table.chain[row]], self._at(row)
            assert at < len(held) and held[at] == row, f"row {row} is not in its chain"
            assert at == 0 or table.parent[row] == held[at - 1], f"row {row}: its chain is broken above it"

    def _reached(self, pieces: list[array]) -> tuple[np.ndarray, list[int]]:
        """Of each piece of a chain the rows down to its first live one, and those where other chains begin."""
        rows = np.frombuffer(b"".join(pieces), np.int32)
        lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
        ends = np.cumsum(lengths)
        live = self._table.live[rows]
        passed = np.cumsum(live) - live  # live ones before each row
        reached = passed == passed[ends - lengths].repeat(lengths)
        in_chain = np.ones(len(rows), np.int8)
        in_chain[ends - 1] = 0  # all children of a chain's last row begin others
        forks = reached & ~live & (self._table.branches[rows] > in_chain)
        return rows[reached], rows[forks].tolist()

    def _side_chains(self, row: int) -> list[array]:
        """The chains that begin with a child of `row`."""
        chain = self._table.chain
        own, found = chain.item(row), chain[self._table.children[row]]
        return [self._rows[other] for other in found.tolist() if other != own]

    def _at(self, row: int) -> int:
        return bisect_left(self._depths[self._table.chain[row]], self._table.depth[row])

    def _insert(self, chain: int, at: int, row: int) -> None:
        self._table.chain[row] = chain
        self._rows[chain].insert(at, row)
        self._depths[chain].insert(at, int(self._table.depth[row]))

    def _new(self) -> int:
        if self._free:
            return self._free.pop()
        self._rows.append(array("i"))
        self._depths.append(array("q"))
        return len(self._rows) - 1
