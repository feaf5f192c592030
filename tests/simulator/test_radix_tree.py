"""The radix tree: by hand, against a brute-force model, and with long prompts."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from marconi_ext.simulator.radix_tree import RadixTree, common_prefix_tokens


def arr(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


def test_lookup_stops_where_the_tree_stops() -> None:
    tree = RadixTree()
    tree.set_state(tree.insert(arr(1, 2, 3, 4), tick=1).node, "s")
    hit = tree.lookup(arr(1, 2, 3, 4, 5))
    assert (hit.kv_tokens, hit.state_tokens, hit.diverges) == (
        4,
        4,
        False,
    )  # extends a leaf
    hit = tree.lookup(arr(1, 2, 9))
    assert (hit.kv_tokens, hit.state_tokens, hit.diverges) == (2, 0, True)
    hit = tree.lookup(arr(1, 2))
    assert (hit.kv_tokens, hit.diverges, hit.partial is not None) == (2, True, True)


def test_split_keeps_the_state_at_its_end() -> None:
    tree = RadixTree()
    deep = tree.insert(arr(1, 2, 3, 4), tick=1).node
    tree.set_state(deep, "s")
    done = tree.insert(arr(1, 2, 9), tick=2)
    assert done.new_tokens == 1 and done.upper.depth_tokens == 2 and done.upper.last_tick == 2
    assert deep.state == "s" and deep.parent is done.upper and deep.last_tick == 1
    assert tree.lookup(arr(1, 2, 9, 9)).state_tokens == 0
    assert tree.boundary(done.node, 2, tick=3) is done.upper
    assert tree.boundary(done.node, 1, tick=3).depth_tokens == 1
    tree.check()


def test_lookup_does_not_change_the_tree() -> None:
    tree = RadixTree()
    tree.insert(arr(1, 2, 3, 4), tick=1)
    before = [(n.serial, n.tokens.tolist(), n.last_tick, n.pins) for n in tree.nodes()]
    tree.lookup(arr(1, 2, 7))
    assert before == [(n.serial, n.tokens.tolist(), n.last_tick, n.pins) for n in tree.nodes()]


def test_tokens_are_copied() -> None:
    tree, tokens = RadixTree(), arr(1, 2, 3)
    tree.insert(tokens, tick=1)
    tokens[:] = 7
    assert tree.lookup(arr(1, 2, 3)).kv_tokens == 3


def test_misuse_is_refused() -> None:
    tree = RadixTree()
    node = tree.insert(arr(1, 2), tick=1).node
    tree.pin(node)
    for call in (
        lambda: tree.insert(arr(), 1),
        lambda: tree.remove_leaf(node),
        lambda: tree.split(node, 2, 1),
        lambda: tree.boundary(node, 3, 1),
        lambda: tree.drop_state(node),
        lambda: tree.merge_into_child(node),
        lambda: tree.set_state(tree.root, "s"),
    ):
        with pytest.raises(ValueError):
            call()
    tree.unpin(node)
    with pytest.raises(ValueError):
        tree.unpin(node)
    tree.check()


def test_check_sees_a_broken_counter_and_a_broken_link() -> None:
    tree = RadixTree()
    node = tree.insert(arr(1, 2), tick=1).node
    tree.num_tokens += 1
    with pytest.raises(AssertionError, match="counted"):
        tree.check()
    tree.num_tokens -= 1
    node.depth_tokens = 5
    with pytest.raises(AssertionError, match="wrong depth"):
        tree.check()


@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, 4608, 100_000])
def test_common_prefix_of_long_arrays(length: int) -> None:
    a = np.arange(100_001, dtype=np.int32)
    b = a.copy()
    b[length:] += 1
    assert common_prefix_tokens(a, b) == length
    assert common_prefix_tokens(a[:length], b[:length]) == length


class TreeAgainstModel(RuleBasedStateMachine):
    """The model: the set of held prefixes, the set of prefixes with a state, the pinned sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = RadixTree()
        self.held: set[tuple[int, ...]] = set()
        self.states: set[tuple[int, ...]] = set()
        self.pinned: list = []
        self.tick = 0

    sequences = st.lists(st.integers(0, 2), min_size=1, max_size=12)

    @rule(tokens=sequences, save=st.booleans())
    def insert(self, tokens, save):
        self.tick += 1
        key = tuple(tokens)
        new = sum(key[:k] not in self.held for k in range(1, len(key) + 1))
        path = self.tree.lookup(arr(*tokens)).path
        done = self.tree.insert(arr(*tokens), self.tick, path[-1] if path and save else None)
        assert done.new_tokens == new and tuple(self.tree.sequence(done.node)) == key
        self.held |= {key[:k] for k in range(1, len(key) + 1)}
        if save and key not in self.states:
            self.tree.set_state(done.node, self.tick)
            self.states.add(key)

    @rule(tokens=sequences)
    def lookup(self, tokens):
        key = tuple(tokens)
        kv = max((k for k in range(1, len(key) + 1) if key[:k] in self.held), default=0)
        state = max((k for k in range(1, kv + 1) if key[:k] in self.states), default=0)
        fork = kv > 0 and any(len(h) == kv + 1 and h[:kv] == key[:kv] for h in self.held)
        hit = self.tree.lookup(arr(*tokens))
        assert (hit.kv_tokens, hit.state_tokens, hit.diverges) == (kv, state, fork)
        for i, start in enumerate(hit.path):  # from there it finds the rest
            rest = self.tree.lookup(arr(*tokens), start)
            assert (rest.path, rest.partial) == (hit.path[i + 1 :], hit.partial)
            assert (rest.kv_tokens, rest.diverges) == (kv, fork)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def boundary(self, data):
        node = data.draw(st.sampled_from(list(self.tree.nodes())))
        depth = data.draw(st.integers(1, node.depth_tokens))
        whole = tuple(self.tree.sequence(node))
        assert tuple(self.tree.sequence(self.tree.boundary(node, depth, self.tick))) == whole[:depth]

    @precondition(lambda self: self.states)
    @rule(data=st.data())
    def drop_state(self, data):
        node = data.draw(st.sampled_from([n for n in self.tree.nodes() if n.state is not None]))
        self.tree.drop_state(node)
        self.states.remove(tuple(self.tree.sequence(node)))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def remove_leaf(self, data):
        node = data.draw(st.sampled_from([n for n in self.tree.nodes() if n.is_leaf]))
        key = tuple(self.tree.sequence(node))
        if node.pins:
            with pytest.raises(ValueError):
                self.tree.remove_leaf(node)
            return
        gone = {key[:k] for k in range(len(key) - len(node.tokens) + 1, len(key) + 1)}
        assert self.tree.remove_leaf(node) == len(gone)
        self.held -= gone
        self.states -= gone

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def merge(self, data):
        def mergeable(n):
            return len(n.children) == 1 and n.state is None and n.pins == next(iter(n.children.values())).pins

        nodes = [n for n in self.tree.nodes() if mergeable(n)]
        if nodes:
            self.tree.merge_into_child(data.draw(st.sampled_from(nodes)))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def pin(self, data):
        node = data.draw(st.sampled_from(list(self.tree.nodes())))
        self.tree.pin(node)
        self.pinned.append((node, tuple(self.tree.sequence(node))))

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data):
        node, key = self.pinned.pop(data.draw(st.integers(0, len(self.pinned) - 1)))
        assert tuple(self.tree.sequence(node)) == key
        self.tree.unpin(node)

    @invariant()
    def sound(self):
        self.tree.check()
        held = set()
        for node in self.tree.nodes():
            key = tuple(self.tree.sequence(node))
            held |= {key[:k] for k in range(len(key) - len(node.tokens) + 1, len(key) + 1)}
            assert (key in self.states) == (node.state is not None)
            assert node.pins == sum(p[: len(key)] == key for _, p in self.pinned)
        assert held == self.held


TestTreeAgainstModel = TreeAgainstModel.TestCase
TestTreeAgainstModel.settings = settings(max_examples=150, stateful_step_count=50)
