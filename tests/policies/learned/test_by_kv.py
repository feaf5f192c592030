"""Leaves by what each token of their KV is worth."""

import numpy as np
import pytest

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.learned.by_kv import ByKv
from marconi_ext.policies.learned.gittins import Gittins
from marconi_ext.policies.registry import parse_policy
from marconi_ext.policies.table.checkpoints import CheckpointTable, Kind
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.simulator import Simulator
from marconi_ext.traces import synthetic


def test_where_kv_is_short_a_leaf_goes_by_what_its_kv_is_worth() -> None:
    """Agents of long conversations have ended, then few-shot prompts come, in 20,000 tokens of KV. Three seeds,
    for a state more or less at the start moves one of them by 4 %."""

    def hits(eviction: str) -> int:
        found = 0
        for seed in range(3):
            currency = Currency()
            capacity = Capacity(slots=16, tokens=20_000)
            simulator = Simulator(capacity, *parse_policy(eviction).build(currency), currency)
            for request in synthetic("agent", sessions=20, seed=seed):
                simulator.serve(request)
            few_shot = synthetic("few-shot", sessions=200, seed=seed)
            found += sum(simulator.serve(request).hit_tokens for request in few_shot)
        return found

    assert hits("gittins") > 0.99 * hits("fork-predictor+seglen") > 1.25 * hits("lru")


def test_a_leafs_worth_is_shared_by_its_tokens() -> None:
    """The long leaf saves ten times what the short one does, and ten times as many tokens go with it."""
    currency, table = Currency(), CheckpointTable(2)
    rows = np.array([table.add(-1, depth, Kind.LAST_TOKEN, 1) for depth in (1000, 100)])
    policy = Gittins(currency)
    for row in rows.tolist():
        policy.offered(table, row, 1)
        table.set_live(row, 1)
        table.leaf_tokens[row] = table.depth[row]
    whole = policy.scores(table, rows, 5)
    by_token = ByKv(policy, currency).scores(table, rows, 5)
    assert whole[0] == pytest.approx(10 * whole[1]) and by_token[0] == pytest.approx(by_token[1])
    in_bytes = Currency(kv_bytes_per_token=2.0)  # one buffer: a byte is a byte
    assert (ByKv(policy, in_bytes).scores(table, rows, 5) == whole).all()
