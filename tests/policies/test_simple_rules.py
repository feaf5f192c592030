"""Baselines that know a superseded state, on tables worked by hand."""

import numpy as np

from marconi_ext.policies.simple_rules import FortyLines, Gdsf, Hyperbolic, SupersededSegLen, superseded
from marconi_ext.policies.table.checkpoints import CheckpointTable, Fate, Kind


def conversation_and_lone_tail() -> CheckpointTable:
    """Row 0 of 1000 tokens goes on to row 1 of 1300; row 2 of 400 stands alone. All were saved at tick 1."""
    table = CheckpointTable(8)
    old = table.add(-1, 1000, Kind.LAST_TOKEN, 1)
    table.add(old, 1300, Kind.LAST_TOKEN, 1)
    table.add(-1, 400, Kind.LAST_TOKEN, 1)
    table.fanout[old] = 1
    for row in range(3):
        table.set_live(row, 1)
    return table


def test_a_state_is_superseded_by_what_lies_below_it() -> None:
    table, rows = conversation_and_lone_tail(), np.arange(3)
    assert superseded(table, rows).tolist() == [True, False, False]
    table.fanout[0] = 2
    assert not superseded(table, rows).any()
    table.fanout[0] = 1
    table.set_gone(1, Fate.EVICTED)
    assert not superseded(table, rows).any()


def test_superseded_states_go_first_under_every_simple_rule() -> None:
    for rule in (SupersededSegLen(), Hyperbolic(), Gdsf(), FortyLines()):
        table = conversation_and_lone_tail()
        for row in range(3):
            rule.offered(table, row, 1)
        order = np.argsort(rule.scores(table, np.arange(3), 11)).tolist()
        assert order == [0, 1, 2], type(rule).__name__  # the tail saves 300 tokens over it, the lone one 400
        table.set_gone(1, Fate.EVICTED)
        assert rule.scores(table, np.array([0, 2]), 11).argmin() == 1, type(rule).__name__


def test_gdsf_ages_by_what_its_last_victim_was_worth() -> None:
    """The lone tail (worth 400) goes; what is used from then on stands 400 higher."""
    table, rule = conversation_and_lone_tail(), Gdsf()
    for row in range(3):
        rule.offered(table, row, 1)
    table.set_gone(2, Fate.EVICTED)
    rule.gone(table, 2, 1)
    rule.request(table, [0, 1], 1, 2)
    table.uses[1] = 1
    assert rule.scores(table, np.array([1]), 2).tolist() == [400 + 2 * 300]


def test_forty_lines_counts_a_forks_uses_and_a_tails_age() -> None:
    """A fork of 400 tokens used 3 times in 9 requests, and a tail of 400 last used 9 requests ago: 4 / 10 to 1 / 10."""
    table, rule = CheckpointTable(8), FortyLines()
    for _ in range(2):
        table.set_live(table.add(-1, 400, Kind.LAST_TOKEN, 1), 1)
    table.fanout[0], table.uses[0] = 2, 3
    assert np.allclose(rule.scores(table, np.arange(2), 10), [400 * 4 / 10, 400 * 1 / 10])
    assert rule.refuses
