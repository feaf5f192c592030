"""The yardstick that knows each session's law and not its draws."""

import numpy as np
import pytest

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.registry import parse_policy
from marconi_ext.profiles import load_profile
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.cell import Options, run_cell
from marconi_ext.simulator.clairvoyant import Future
from marconi_ext.simulator.law import Law
from marconi_ext.simulator.simulator import Simulator
from marconi_ext.simulator.workload import load_workload
from marconi_ext.traces import Request, synthetic


def prompt(session: str, turn: int, tokens: int) -> Request:
    """Of a session whose prompts extend each other; no answers."""
    ids = np.arange(tokens, dtype=np.int32) + 10_000 * ord(session)
    return Request(session, turn, 0.0, ids, ids[:0])


def test_hazards_by_hand() -> None:
    """Of a, b and c, all go on after one turn and a alone after two: it asks again every second request."""
    requests = [
        prompt(session, turn, 100 * (turn + 1))
        for session, turn in [("a", 0), ("b", 0), ("a", 1), ("c", 0), ("a", 2), ("b", 1), ("c", 1)]
    ]
    law = Law(Currency(), Future(requests), requests)
    simulator = Simulator(
        Capacity(slots=4), parse_policy("selective+lru").build(Currency())[0], law, Currency()
    )
    for request in requests[:3]:
        simulator.serve(request)
    hazards = law.hazards(3)
    assert hazards["b"] == pytest.approx(1 / 4)  # one turn, of which all go on; one gap, of four requests
    assert hazards["a"] == pytest.approx(1 / 3 / 2)  # two turns: one of three goes on
    later = law.hazards(5)
    still = 1 / 3 * np.exp(-1.0)
    assert later["a"] == pytest.approx(still / (still + 2 / 3) / 2)


def test_it_is_between_lru_and_the_clairvoyant() -> None:
    workload = load_workload("agent", 0, synthetic("agent", seed=0))
    rates = [
        run_cell(workload, parse_policy(name), Capacity(slots=16), load_profile("nemotron-h-8b"), Options())[
            "token_hit_rate"
        ]
        for name in ("lru", "law", "clairvoyant")
    ]
    assert rates[0] + 0.1 < rates[1] < rates[2] - 0.05
