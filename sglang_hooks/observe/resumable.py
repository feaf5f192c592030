"""Which nodes of a radix tree a state makes reusable: plain bookkeeping, without SGLang.

The KV of a node can be reused only up to a state at or below it on some path: the node is *resumable*. States lie at
the ends of nodes, so a node is resumable whole or not at all. A node counts what makes it so: its own state, and its
resumable children. A change walks up only as far as the answer changes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

N = TypeVar("N", bound=Hashable)


class Resumable(Generic[N]):
    """parent_of: the node above; None for the root, which is never resumable itself"""

    def __init__(self, parent_of: Callable[[N], N | None]) -> None:
        self._parent_of = parent_of
        self._states: set[N] = set()
        self._reasons: dict[N, int] = {}  # own state + resumable children; absent: none

    def __contains__(self, node: N) -> bool:
        return node in self._reasons

    def __len__(self) -> int:
        return len(self._reasons)

    def entered(self, node: N) -> list[N]:
        """A state has come to `node`. Returns: nodes that became resumable, from the top down."""
        if node in self._states:
            return []
        self._states.add(node)
        became: list[N] = []
        above = self._parent_of(node)
        while above is not None:
            self._reasons[node] = self._reasons.get(node, 0) + 1
            if self._reasons[node] > 1:
                break
            became.append(node)
            node, above = above, self._parent_of(above)
        became.reverse()
        return became

    def gone(self, node: N) -> list[N]:
        """The state at `node` has left. Returns: nodes that no state makes reusable any more, from the bottom up."""
        if node not in self._states:
            return []
        self._states.discard(node)
        ended: list[N] = []
        above = self._parent_of(node)
        while above is not None:
            self._reasons[node] -= 1
            if self._reasons[node]:
                break
            del self._reasons[node]
            ended.append(node)
            node, above = above, self._parent_of(above)
        return ended

    def split(self, upper: N, lower: N) -> None:
        """`upper` was cut off the top of `lower`, which keeps its end, and its state."""
        if lower in self._reasons:
            self._reasons[upper] = 1

    def clear(self) -> None:
        """No state is left."""
        self._states.clear()
        self._reasons.clear()

    def check(self, nodes: Iterable[tuple[N, bool]]) -> None:
        """Recount from the whole tree, the root left out: (node, whether it holds a state)."""
        expected: set[N] = set()
        states: set[N] = set()
        for node, has_state in nodes:
            if has_state:
                states.add(node)
                above: N | None = node
                while above is not None and (higher := self._parent_of(above)) is not None:
                    expected.add(above)
                    above = higher
        assert self._states == states, f"states: {self._states ^ states}"
        assert set(self._reasons) == expected, f"resumable: {set(self._reasons) ^ expected}"
