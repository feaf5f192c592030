"""How states are offered to a cache, and which of the table's rows have one: the same for every tree.

`HeldStates.place` is the whole of an offer: a state that is held already is wanted again; one that is only worth a
free slot is left where none is free; else its row is claimed, so that it stays while room is looked for, and the
owner of the tree either finds room or says why not. The live engine, its simulation and the simulator all offer
their states here. What is true after every call, of every row:

    live = its node holds a state, or somebody has room for one that it will bring
    pins = locks on its node's state + 1 where somebody claims it

Both are worked out from the tree and from the claims each time, never counted up and down, so that it doesn't matter
in which order requests finish, are retracted or aborted, and states are evicted or loaded back.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol

from marconi_ext.policies.admission import Offer
from marconi_ext.policies.request_plan import Plan, Serving
from marconi_ext.policies.runtime import PolicyRuntime
from marconi_ext.policies.table.checkpoints import Kind
from marconi_ext.policies.table.tree_rows import TreeRecords, row_of


class Placed(Enum):
    """What became of an offer."""

    HELD = "held"  # a state is there, or on its way
    NO_FREE_ROOM = "no free room"  # worth a free slot alone, and none was free
    DISPLACED = "displaced"  # the engine has no room for it in this extend
    REFUSED = "refused"
    GRANTED = "granted"  # there is room: the state will come, or be abandoned


@dataclass(eq=False, kw_only=True)
class Claim:
    """A state that somebody wants to bring to the tree.

    row: of the policy's table; -1: the record went with its node
    plan: of the request that brings it; None: its node is in the tree already
    granted: there is room for it
    """

    row: int = -1
    plan: Plan | None = None
    granted: bool = False


class Tree(Protocol):
    """What is asked of the tree whose states are held."""

    def holds_state(self, node: Any) -> bool: ...
    def locks(self, node: Any) -> int:
        """Requests that keep the node's state where it is."""


class Room(Protocol):
    """Where states find room."""

    def is_free(self) -> bool:
        """Whether one more fits with nothing evicted."""

    def take(self, claim: Any) -> str | None:
        """Make room for a claimed state, by evicting what is worth less. Returns: None, or why there is none."""


class Listener(Protocol):
    """Who counts what comes and goes, by kind of state."""

    def saved(self, kind: Kind) -> None: ...
    def evicted(self, kind: Kind, reason: str) -> None: ...


class Gone(NamedTuple):
    """Why a row's state isn't there. born: the row's, so that another row's in the same place isn't taken for it;
    tick: the request at which it went, or was refused; reason: for operators"""

    born: int
    tick: int
    reason: str


class HeldStates:
    """Which rows have a state, or will have one. Single-threaded; one per tree.

    claims: by row
    """

    def __init__(
        self,
        runtime: PolicyRuntime,
        records: TreeRecords,
        serving: Serving | None,
        tree: Tree,
        listener: Listener | None = None,
    ) -> None:
        self.runtime, self.records, self.serving = runtime, records, serving
        self.claims: dict[int, Claim] = {}
        self._tree = tree
        self._listener = listener
        self._gone: dict[int, Gone] = {}  # by row, so no more than the table has rows

    # ---- a state that is offered ----

    def place(self, claim: Claim, offer: Offer, room: Room, tenant: int = 0) -> Placed:
        """Offer a state for `claim.row`. Where it is granted, `arrived` or `abandon` ends the claim."""
        runtime, row = self.runtime, claim.row
        self._pin(row)  # the node may have its row only now
        if runtime.table.live[row]:
            runtime.touch(row)
            return Placed.HELD
        runtime.table.tenant[row] = tenant
        if offer.spare and not room.is_free():
            return Placed.NO_FREE_ROOM
        if not runtime.offer(row, offer):
            return Placed.DISPLACED
        self.claims[row] = claim
        self._pin(row)
        reason = room.take(claim)
        if reason is not None:
            self.abandon(claim, reason)
            return Placed.REFUSED
        claim.granted = True
        if claim.row >= 0 and not runtime.table.live[claim.row]:
            runtime.saved(claim.row)
        return Placed.GRANTED

    def place_inside_answer(self, claim: Claim, depth_tokens: int, room: Room, tenant: int = 0) -> Placed:
        """Offer the state after so many tokens, inside an answer. A claim that has room takes it along, deeper."""
        assert self.serving is not None and claim.plan is not None, "a plan is made by somebody who serves"
        claim.row = self.serving.row_inside_answer(claim.plan, depth_tokens, claim.row)
        if claim.granted:
            return Placed.GRANTED
        return self.place(claim, Offer(depth_tokens, Kind.IN_ANSWER), room, tenant)

    def abandon(self, claim: Claim, reason: str) -> None:
        """There will be no such state: no room was to be had, or the request was aborted or retracted.

        A state that came to the same node by other means meanwhile stays what it is.
        """
        row = self.settle(claim)
        if row >= 0 and not self._has_state(row):
            self.runtime.refused(row)
            self._note(row, reason)

    def settle(self, claim: Claim) -> int:
        """The claim has ended. Returns: its row; -1: that has gone."""
        row = claim.row
        if row >= 0 and self.claims.pop(row, None) is not None:
            self._pin(row)
        return row

    # ---- a state in the tree ----

    def arrived(
        self, node: Any, depth_tokens: int, kind: Kind, *, is_new: bool, claim: Claim | None = None
    ) -> None:
        """The tree has a state at `node`. is_new: it wasn't there before; claim: what brought it, if it was planned."""
        runtime, row = self.runtime, row_of(node)
        if claim is not None:
            planned_at = self.settle(claim)
            if planned_at >= 0 and claim.plan is not None:
                assert self.serving is not None, "a plan is made by somebody who serves"
                row = self.serving.settle(claim.plan, planned_at, node)
        if row < 0:
            row = self.records.record(node, depth_tokens, kind)
        if not runtime.table.live[row]:
            runtime.offer(row, Offer(depth_tokens, kind))
            runtime.saved(row)
        elif not is_new:
            runtime.touch(row)
        if is_new and self._listener is not None:
            self._listener.saved(Kind(runtime.table.kind.item(row)))
        self._pin(row)

    def waits(self, node: Any, depth_tokens: int, kind: Kind) -> None:
        """A state came to `node` on the host, out of storage: it has a row like any other that isn't on the device."""
        if row_of(node) < 0:
            self.records.record(node, depth_tokens, kind)

    def left(self, node: Any, reason: str) -> None:
        """The state that was at `node` isn't there any more. reason: as `REASONS` of an explanation has it"""
        row, table = row_of(node), self.runtime.table
        if row < 0:
            return
        if self._listener is not None:
            self._listener.evicted(Kind(table.kind.item(row)), reason)
        self._note(row, reason)
        claim = self.claims.get(row)
        if claim is None or not claim.granted:  # else somebody brings one again
            self.runtime.evicted(row)

    def locks_changed(self, node: Any) -> None:
        """Requests hold the node's state more or less often than before, or the node has only now got its row."""
        row = row_of(node)
        if row >= 0:
            self._pin(row)

    def why_gone(self, row: int) -> Gone | None:
        """Why there is no state at this row; None: nothing is known."""
        gone = self._gone.get(row)
        return gone if gone is not None and gone.born == self.runtime.table.born.item(row) else None

    def is_wanted(self, node: Any) -> bool:
        """Whether somebody claims the node's row, or locks it."""
        row = row_of(node)
        return row >= 0 and self.runtime.table.is_pinned(row)

    def node_leaves(self, node: Any) -> None:
        """The node is about to leave the tree, and its record with it. A state claimed there finds a node later."""
        claim = self.claims.get(row_of(node))
        if claim is not None:
            self.settle(claim)
            claim.row = -1
        self.records.forget(node)

    def clear(self) -> None:
        """The tree was reset, and the pools with it."""
        self.claims.clear()
        self._gone.clear()
        self.records.clear()
        self.runtime.forget_all()

    def by_kind(self) -> Counter[Kind]:
        """States in the tree, by kind."""
        kind = self.runtime.table.kind
        counts = Counter(kind[self.runtime.table.live_rows()].tolist())
        counts.subtract(kind.item(row) for row in self.coming())
        return Counter({Kind(kind): count for kind, count in sorted(counts.items()) if count})

    def coming(self) -> list[int]:
        """Rows that have no state yet, and room for one that is to come."""
        return [row for row, claim in self.claims.items() if claim.granted and not self._has_state(row)]

    # -----------------------------------------------------------------------------------------------------

    def _has_state(self, row: int) -> bool:
        node = self.records.node(row)
        return node is not None and self._tree.holds_state(node)

    def _note(self, row: int, reason: str) -> None:
        self._gone[row] = Gone(self.runtime.table.born.item(row), self.runtime.tick, reason)

    def _pin(self, row: int) -> None:
        node = self.records.node(row)
        locks = 0 if node is None else self._tree.locks(node)
        self.runtime.table.set_pins(row, locks + (row in self.claims))
