"""The census finds each way in which the policy's table and the tree can differ, at once and by its walk."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import engineless_cache
import pytest
from engineless_cache import Driver
from tree_nodes import nodes_of

from marconi_ext.policies.table.tree_rows import row_of
from sglang_hooks.node_states import holds_state


@pytest.fixture
def driver() -> Driver:
    """With some states in its tree, and a request whose states aren't published yet."""
    engineless_cache.publish_settings()
    made = Driver("marconi", slots=60, tokens=20_000, context_tokens=512)
    for number in range(200):
        made.serve(number, array("q", [*range(20), number % 50, *range(30)]), array("q", [7, 8, 9]))
    made.cache.mamba.ledger.unwritten = lambda _req: []  # no forward pass fills them
    made.prefill(made.match(200, array("q", [90_000, *range(30)]), 1))
    return made


def state_without_row(driver: Driver) -> None:
    node = next(node for node in nodes_of(driver.cache) if holds_state(node))
    node.record = None


def row_of_another_node(driver: Driver) -> None:
    one, other, *_ = (node for node in nodes_of(driver.cache) if holds_state(node))
    one.record = other.record


def live_row_without_state(driver: Driver) -> None:
    table = driver.cache.mamba.runtime.table
    ghost = next(row for node in nodes_of(driver.cache) if (row := row_of(node)) >= 0 and not table.live[row])
    table.live[ghost] = True


def pin_that_nobody_holds(driver: Driver) -> None:
    table = driver.cache.mamba.runtime.table
    table.pins[next(row for row in table.live_rows() if not table.pins[row])] += 1


def claim_that_the_ledger_lost(driver: Driver) -> None:
    driver.cache.mamba.ledger.clear()


def row_that_was_never_given_back(driver: Driver) -> None:
    table = driver.cache.mamba.runtime.table
    table.pins[table.add(-1, 7, 0, 1)] = 1


FAULTS = {
    state_without_row: "a state and no row",
    row_of_another_node: "isn't its own",
    live_row_without_state: "live in the table True, in the tree False",
    pin_that_nobody_holds: "pins 1, not 0",
    claim_that_the_ledger_lost: "in the ledger",
    row_that_was_never_given_back: "without a node: pins 1",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_each_fault_is_named(driver: Driver, fault: Callable[[Driver], None]) -> None:
    census = driver.cache.census
    assert census.differences() == [] and census.totals()["pending"] > 0
    fault(driver)
    found = census.differences()
    assert found and any(FAULTS[fault] in line for line in found), found


def test_a_walk_goes_on_where_it_stopped_and_tells_what_it_found(driver: Driver) -> None:
    census, nodes = driver.cache.census, len(nodes_of(driver.cache))
    state_without_row(driver)
    steps = 0
    while not census.walks:
        census.walk(0.0)  # no time: as few nodes as it looks at between two looks at the clock
        steps += 1
    assert 1 < steps <= nodes and census.last_walk_found == 1
    assert census.totals()["differences"] == 1
