"""What leaves first, on lists of names: dead leaves, states, whole leaves, in two pools and in one buffer."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from marconi_ext.policies.making_room import DeadLeaves, make_room_for_kv, make_room_for_state


@dataclass(eq=False)
class Leaf:
    number: int
    used: int = 0
    may_go: bool | None = True


def dead(*leaves: Leaf) -> DeadLeaves:
    found = DeadLeaves(lambda leaf: leaf.number, lambda leaf: leaf.may_go, lambda leaf: leaf.used)
    for leaf in leaves:
        found.add(leaf)
    return found


def popped(leaves: DeadLeaves) -> list[int]:
    found = []
    while (leaf := leaves.pop()) is not None:
        found.append(leaf.number)
    return found


def test_the_one_used_longest_ago_is_first_and_each_comes_once() -> None:
    leaves = [Leaf(1, used=5), Leaf(2, used=3), Leaf(3, used=3)]
    found = dead(*leaves, *leaves)
    assert popped(found) == [2, 3, 1]


def test_an_entry_is_looked_at_when_it_is_taken() -> None:
    old, gone, busy = Leaf(1, used=1), Leaf(2, used=2), Leaf(3, used=3)
    found = dead(old, gone, busy)
    old.used, gone.may_go, busy.may_go = 9, None, False
    assert popped(found) == [1]
    busy.may_go = True  # it stayed in the list
    assert popped(found) == [3]


def test_one_put_first_goes_before_older_ones() -> None:
    old, young = Leaf(1, used=1), Leaf(2, used=8)
    found = dead(old, young)
    found.add(young, first=True)
    young.used = 20
    assert found.pop() is young


def test_one_to_be_spared_stays_in_the_list() -> None:
    first, second = Leaf(1), Leaf(2)
    found = dead(first, second)
    assert found.pop(lambda leaf: leaf is first) is second
    assert found.pop() is first
    found.add(first)
    found.clear()
    assert found.pop() is None


@dataclass
class Tree:
    """Leaves free 1 token each, states 1 slot each; in a shared buffer either counts."""

    dead: list[str] = field(default_factory=list)
    wanted: list[str] = field(default_factory=list)  # dead leaves at which a state is planned
    states: list[int] = field(default_factory=list)  # the least valuable first
    leaves: list[str] = field(default_factory=list)
    gone: list[str | int] = field(default_factory=list)

    def dead_leaf(self, *, unwanted: bool = False) -> str | None:
        return next(iter([*self.dead, *([] if unwanted else self.wanted)]), None)

    def coldest_leaf(self) -> str | None:
        return next(iter(self.leaves), None)

    def least_valuable(self, newcomer: int = -1) -> int | None:
        offered = [newcomer] if newcomer >= 0 else []
        return min([*self.states, *offered], default=None)

    def take_leaf(self, leaf: str) -> None:
        for held in (self.dead, self.wanted, self.leaves):
            if leaf in held:
                held.remove(leaf)
        self.gone.append(leaf)

    def take_state(self, row: int) -> None:
        self.states.remove(row)
        self.gone.append(row)

    def short_of(self, count: int):
        return lambda: len(self.gone) < count


def test_kv_in_its_own_pool_is_made_by_leaves_alone() -> None:
    tree = Tree(dead=["d1"], wanted=["d2"], states=[4], leaves=["l1", "l2"])
    assert make_room_for_kv(tree, tree.short_of(3), shared=False)
    assert tree.gone == ["d1", "d2", "l1"]


def test_kv_in_a_shared_buffer_is_made_by_states_before_leaves() -> None:
    tree = Tree(dead=["d1"], states=[4, 5], leaves=["l1"])
    assert make_room_for_kv(tree, tree.short_of(4), shared=True)
    assert tree.gone == ["d1", 4, 5, "l1"]


@pytest.mark.parametrize("shared", [False, True])
def test_where_nothing_may_go_it_says_so(shared: bool) -> None:
    tree = Tree()
    assert not make_room_for_kv(tree, tree.short_of(1), shared=shared)
    assert not make_room_for_state(tree, tree.short_of(1), shared=shared)
    assert make_room_for_kv(tree, tree.short_of(0), shared=shared)


def test_a_slot_is_made_by_states_alone() -> None:
    tree = Tree(dead=["d1"], states=[4, 5])
    assert make_room_for_state(tree, tree.short_of(1), shared=False)
    assert tree.gone == [4]


def test_a_slot_spares_leaves_where_a_state_is_planned() -> None:
    tree = Tree(dead=["d1"], wanted=["d2"], states=[4])
    assert make_room_for_state(tree, tree.short_of(2), shared=True)
    assert tree.gone == ["d1", 4] and tree.wanted == ["d2"]


def test_a_newcomer_takes_the_least_or_is_refused() -> None:
    tree = Tree(states=[4, 5])
    assert not make_room_for_state(tree, tree.short_of(1), shared=False, newcomer=3)
    assert tree.gone == []
    assert make_room_for_state(tree, tree.short_of(1), shared=False, newcomer=9)
    assert tree.gone == [4]
