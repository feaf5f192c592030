"""The eviction that knows the trace: what it knows, and that it is ahead."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from mixed_trace import mixed_trace

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.registry import parse_policy
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.clairvoyant import Clairvoyant, Future
from marconi_ext.simulator.simulator import Simulator
from marconi_ext.traces import Request

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=8)


@given(traffic=st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=12), data=st.data())
def test_a_prefixs_future_is_all_prompts_through_it(traffic, data) -> None:
    """A prompt's last token doesn't count: it must be computed."""
    requests = [
        Request("s", i, float(i), np.array(prompt, np.int32), np.array(output, np.int32))
        for i, (prompt, output) in enumerate(traffic)
    ]
    at = data.draw(st.integers(0, len(traffic) - 1))
    sequence = [*traffic[at][0], *traffic[at][1]]
    depth = data.draw(st.integers(1, len(sequence)))
    through = [i for i, (prompt, _) in enumerate(traffic) if prompt[:-1][:depth] == sequence[:depth]]
    assert Future(requests).uses(at, depth).tolist() == through


def test_it_is_ahead_where_slots_are_tight() -> None:
    currency, trace = (
        Currency(linear=1e9, quadratic=1e4, state_bytes=1e8, kv_bytes_per_token=1.6e4),
        mixed_trace(),
    )
    admission, _ = parse_policy("gittins-basic").build(currency)
    hits = {"clairvoyant": (admission, Clairvoyant(currency, Future(trace)))}
    hits |= {name: parse_policy(name).build(currency) for name in ("lru", "gittins-basic")}
    for name, policy in hits.items():
        simulator = Simulator(Capacity(slots=6), *policy, currency)
        hits[name] = sum(simulator.serve(request).hit_tokens for request in trace)
        simulator.finish()
    assert hits["clairvoyant"] > max(hits["lru"], hits["gittins-basic"])
