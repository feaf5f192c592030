"""What leaves where room is short: one order for the live engine, its simulation and the simulator.

KV below the deepest state of its path serves nobody: prefill starts at the state and computes it again. So leaves
without a state go first. Then goes what the policy values least: where KV and states have a pool each, a whole leaf
for KV and a state for a state; in one buffer a state for either, whose leaf's KV is next.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, Protocol

_FIRST = -1  # below any time


class DeadLeaves:
    """Leaves without a state, oldest first. Entries are checked when they are taken, so adding one is cheap.

    number: node -> the order in which nodes were made
    may_go: node -> whether it may leave now; False: it is in use; None: it is no leaf without a state any more
    last_used: node -> when; by default age alone counts
    """

    def __init__(
        self,
        number: Callable[[Any], int],
        may_go: Callable[[Any], bool | None],
        last_used: Callable[[Any], int] = lambda _node: 0,
    ) -> None:
        self._number, self._may_go, self._last_used = number, may_go, last_used
        self._heap: list[tuple[int, int, Any]] = []
        self._listed: set[int] = set()

    def add(self, node: Any, *, first: bool = False) -> None:
        """`node` has lost its state or its last child, or never had either; it may be added again. first: before
        others, however young it is"""
        number = self._number(node)
        if first or number not in self._listed:
            self._listed.add(number)
            heapq.heappush(self._heap, (_FIRST if first else self._last_used(node), number, node))

    def pop(self, spare: Callable[[Any], bool] = lambda _node: False) -> Any | None:
        """The oldest that may go and isn't to be spared, which leaves the list; None: there is none."""
        in_use, found = [], None
        while self._heap and found is None:
            used, number, node = entry = heapq.heappop(self._heap)
            may_go = self._may_go(node)
            if may_go is None:
                self._listed.discard(number)
            elif used != _FIRST and used != (last := self._last_used(node)):
                heapq.heappush(self._heap, (last, number, node))
            elif not may_go or spare(node):
                in_use.append(entry)
            else:
                self._listed.discard(number)
                found = node
        for entry in in_use:
            heapq.heappush(self._heap, entry)
        return found

    def clear(self) -> None:
        """The whole tree is gone."""
        self._heap.clear()
        self._listed.clear()


class Leaving(Protocol):
    """A tree, as far as things leave it."""

    def dead_leaf(self, *, unwanted: bool = False) -> Any | None:
        """The leaf without a state that goes first. unwanted: none at which a state is planned; None: there is none"""

    def coldest_leaf(self) -> Any | None:
        """The leaf with a state that the policy values least; None: none may go."""

    def least_valuable(self, newcomer: int = -1) -> int | None:
        """The row whose state goes first, or `newcomer`; None: none may go."""

    def take_leaf(self, leaf: Any) -> None:
        """The leaf leaves, with its state if it has one."""

    def take_state(self, row: int) -> None:
        """The state at `row` leaves; its KV stays."""


def make_room_for_kv(tree: Leaving, is_short: Callable[[], bool], *, shared: bool) -> bool:
    """Let leaves go until `is_short` says no. shared: KV and states are in one buffer. False: nothing more may go."""
    while is_short():
        leaf = tree.dead_leaf()
        if leaf is None and shared and (row := tree.least_valuable()) is not None:
            tree.take_state(row)
            continue
        leaf = leaf or tree.coldest_leaf()
        if leaf is None:
            return False
        tree.take_leaf(leaf)
    return True


def make_room_for_state(
    tree: Leaving, is_short: Callable[[], bool], *, shared: bool, newcomer: int = -1
) -> bool:
    """Let states go until `is_short` says no; in a shared buffer dead leaves before them.

    newcomer: the row of a state that is offered; -1: a running request's own
    Returns: False where nothing more may go, or all that may is worth more than the newcomer.
    """
    while is_short():
        if shared and (leaf := tree.dead_leaf(unwanted=True)) is not None:
            tree.take_leaf(leaf)
            continue
        row = tree.least_valuable(newcomer)
        if row is None or row == newcomer:
            return False
        tree.take_state(row)
    return True
