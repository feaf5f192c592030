"""An offer from start to end, on a tree of three nodes: what is held, what is claimed, what is pinned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from marconi_ext.policies.admission import Offer
from marconi_ext.policies.currency import Currency
from marconi_ext.policies.held_states import Claim, HeldStates, Placed
from marconi_ext.policies.registry import parse_policy
from marconi_ext.policies.runtime import PolicyRuntime
from marconi_ext.policies.table.checkpoints import Fate, Kind
from marconi_ext.policies.table.tree_rows import TreeRecords

BRANCH = Offer(10, Kind.BRANCH)


@dataclass(eq=False)
class Node:
    parent: Node | None
    tokens: int
    children: dict[int, Node] = field(default_factory=dict)
    state: bool = False
    locks: int = 0
    record: int | None = None


class Tree:
    """Also the room: as many slots as `free` says, and `reason` where there is none."""

    def __init__(self, free: int = 1) -> None:
        self.root = Node(None, 0)
        self.node = self.root.children[0] = Node(self.root, 10)
        self.node.children[0] = Node(self.node, 5)
        self.free, self.reason = free, "worth-less"
        self.heard: list[tuple[Any, ...]] = []
        runtime = PolicyRuntime(*parse_policy("lru").build(Currency()), Currency())
        records = TreeRecords(runtime, lambda node: node.tokens)
        self.held = HeldStates(runtime, records, None, self, self)
        self.table, self.runtime, self.records = runtime.table, runtime, records
        self.row = records.record(self.node, 10, Kind.BRANCH)

    def holds_state(self, node: Node) -> bool:
        return node.state

    def locks(self, node: Node) -> int:
        return node.locks

    def is_free(self) -> bool:
        return self.free > 0

    def take(self, claim: Claim) -> str | None:
        assert self.table.is_pinned(claim.row), "the row must stay while room is looked for"
        if self.free == 0:
            return self.reason
        self.free -= 1
        return None

    def saved(self, kind: Kind) -> None:
        self.heard.append(("saved", kind))

    def evicted(self, kind: Kind, reason: str) -> None:
        self.heard.append(("evicted", kind, reason))

    def place(self, offer: Offer = BRANCH) -> tuple[Placed, Claim]:
        claim = Claim(row=self.row)
        return self.held.place(claim, offer, self), claim

    def arrive(self, claim: Claim) -> None:
        self.node.state = True
        self.held.arrived(self.node, 10, Kind.BRANCH, is_new=True, claim=claim)


def test_a_granted_state_is_live_and_pinned_until_it_arrives() -> None:
    tree = Tree()
    placed, claim = tree.place()
    assert placed is Placed.GRANTED and tree.table.live[tree.row] and tree.table.pins[tree.row] == 1
    assert tree.held.coming() == [tree.row] and not tree.held.by_kind()
    tree.arrive(claim)
    assert not tree.table.is_pinned(tree.row) and tree.held.coming() == []
    assert tree.held.by_kind() == {Kind.BRANCH: 1} and tree.heard == [("saved", Kind.BRANCH)]


def test_a_state_that_is_held_is_wanted_again() -> None:
    tree = Tree()
    tree.arrive(tree.place()[1])
    tree.runtime.tick = 7
    assert tree.place()[0] is Placed.HELD
    assert tree.table.last_use[tree.row] == 7 and not tree.held.claims


@pytest.mark.parametrize(
    ("offer", "placed", "fate"),
    [
        (Offer(10, Kind.BRANCH, spare=True), Placed.NO_FREE_ROOM, Fate.NEVER),
        (Offer(10, Kind.BRANCH, displaced=True), Placed.DISPLACED, Fate.DISPLACED),
        (BRANCH, Placed.REFUSED, Fate.REFUSED),
    ],
)
def test_what_gets_no_room_leaves_no_claim(offer: Offer, placed: Placed, fate: Fate) -> None:
    tree = Tree(free=0)
    assert tree.place(offer)[0] is placed
    assert tree.table.fate[tree.row] == fate
    assert not tree.held.claims and not tree.table.is_pinned(tree.row)
    gone = tree.held.why_gone(tree.row)
    assert (gone.reason if gone else None) == ("worth-less" if placed is Placed.REFUSED else None)


def test_an_abandoned_claim_leaves_what_came_by_other_means() -> None:
    tree = Tree()
    _, claim = tree.place()
    tree.node.state = True
    tree.held.arrived(tree.node, 10, Kind.BRANCH, is_new=True)
    tree.held.abandon(claim, "ended")
    assert tree.table.live[tree.row] and not tree.held.claims


def test_a_state_stays_live_while_another_is_on_its_way() -> None:
    tree = Tree(free=2)
    tree.node.state = True
    tree.held.claims[tree.row] = claim = Claim(row=tree.row, granted=True)
    tree.runtime.saved(tree.row)
    tree.node.state = False
    tree.held.left(tree.node, "pool-full")
    assert tree.table.live[tree.row]
    tree.held.abandon(claim, "ended")
    assert not tree.table.live[tree.row]


def test_a_node_that_leaves_takes_its_record_and_frees_the_claim() -> None:
    tree = Tree()
    _, claim = tree.place()
    tree.held.node_leaves(tree.node)
    assert claim.row == -1 and tree.node.record is None and not tree.held.claims
    tree.held.abandon(claim, "ended")  # nothing is left to say it of
    assert tree.table.num_live == 0


def test_locks_pin_and_are_counted_anew_each_time() -> None:
    tree = Tree()
    tree.node.locks = 2
    tree.held.locks_changed(tree.node)
    _, claim = tree.place()
    assert tree.table.pins[tree.row] == 3 and tree.held.is_wanted(tree.node)
    tree.arrive(claim)
    tree.node.locks = 0
    tree.held.locks_changed(tree.node)
    assert not tree.held.is_wanted(tree.node)


def test_an_emptied_tree_has_nothing() -> None:
    tree = Tree()
    tree.place()
    tree.held.clear()
    assert tree.table.num_live == 0 and not len(tree.table.rows()) and not tree.held.claims
