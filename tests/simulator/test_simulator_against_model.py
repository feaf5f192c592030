"""The corrected simulator with LRU against a brute-force model, on both capacity models."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from marconi_ext.policies.admission import Judicious
from marconi_ext.policies.currency import Currency
from marconi_ext.policies.fixed_rules import Lru
from marconi_ext.policies.registry import parse_policy
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.simulator import Simulator
from marconi_ext.traces import Request

CURRENCY = Currency(state_bytes=10.0, kv_bytes_per_token=1.0)
tokens = st.lists(st.integers(0, 2), min_size=1, max_size=10)
requests = st.lists(
    st.tuples(tokens, st.lists(st.integers(0, 2), min_size=1, max_size=5)), min_size=1, max_size=30
)


def request(prompt: list[int], output: list[int]) -> Request:
    return Request("s", 0, 0.0, np.array(prompt, np.int32), np.array(output, np.int32))


class PlainLru:
    """Prefix sets: `held` KV prefixes, `states` as prefix -> (tick of last use, order of creation)."""

    def __init__(self, slots: int) -> None:
        self.slots, self.held, self.states, self.tick = slots, set(), {}, 0

    def serve(self, prompt: tuple, output: tuple) -> tuple[int, int]:
        self.tick += 1
        usable = [prompt[:k] for k in range(1, len(prompt))]
        kv = max((len(p) for p in usable if p in self.held), default=0)
        hit = max((p for p in usable if p in self.states), key=len, default=())
        if hit:
            self.states[hit] = self.tick
        goes_on = any(len(p) == kv + 1 and p[:kv] == prompt[:kv] for p in self.held)
        sequence = prompt + output[:-1]
        self.held |= {sequence[:k] for k in range(1, len(sequence) + 1)}
        if kv > len(hit) and goes_on and kv:
            self.save(prompt[:kv], keep=hit)
        self.save(sequence, keep=hit)
        return len(hit), kv

    def save(self, prefix: tuple, keep: tuple) -> None:
        if prefix not in self.states and len(self.states) >= self.slots:
            free = [p for p in self.states if p != keep]
            if not free:
                return
            del self.states[min(free, key=self.states.get)]
        self.states[prefix] = self.tick


@settings(max_examples=120)
@given(trace=requests)
def test_ample_slots(trace) -> None:
    simulator = Simulator(Capacity(slots=10_000), Judicious(), Lru(CURRENCY), CURRENCY)
    model = PlainLru(10_000)
    for prompt, output in trace:
        served = simulator.serve(request(prompt, output))
        assert (served.hit_tokens, served.kv_tokens) == model.serve(tuple(prompt), tuple(output))
    simulator.finish()
    assert simulator.tree.num_states == len(model.states)


@settings(max_examples=120)
@given(
    trace=requests,
    policy=st.sampled_from(
        ["lru", "lru-leaf", "flop-aware:0.5", "gittins", "every-block:2+lru", "grid:2+seglen"]
    ),
    capacity=st.sampled_from(
        [
            Capacity(slots=2),
            Capacity(slots=3, tokens=20),
            Capacity(tokens=15),
            Capacity(bytes=70),
            Capacity(bytes=25),
        ]
    ),
    concurrency=st.integers(1, 4),
)
def test_tables_balance_after_every_request(trace, policy, capacity, concurrency) -> None:
    """What hits is a prefix that was seen; tree, table and capacity hold after each step."""
    simulator = Simulator(capacity, *parse_policy(policy).build(CURRENCY), CURRENCY, concurrency)
    seen: set[tuple] = set()
    for prompt, output in trace:
        served = simulator.serve(request(prompt, output))
        simulator.check()
        assert served.hit_tokens == 0 or tuple(prompt[: served.hit_tokens]) in seen
        sequence = tuple(prompt + output[:-1])
        seen |= {sequence[:k] for k in range(1, len(sequence) + 1)}
    simulator.finish()


def test_what_leaves_of_the_sequence_itself_is_counted_again() -> None:
    """The fourth prompt is held whole behind its match, and that leaf is what makes room for its answer."""
    simulator = Simulator(Capacity(bytes=25), *parse_policy("gittins").build(CURRENCY), CURRENCY)
    for prompt, output in (([0], [0]), ([1, *[0] * 8], [0] * 5), ([0], [0]), ([0], [0] * 3)):
        simulator.serve(request(prompt, output))
        simulator.check()
