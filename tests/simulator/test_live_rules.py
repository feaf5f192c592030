"""The live engine's rules in simulation: tables that balance, and no difference to the simulator without pressure."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.registry import parse_policy
from marconi_ext.policies.table.checkpoints import Kind
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.live_rules import LiveRules
from marconi_ext.simulator.simulator import Simulator
from marconi_ext.traces import Request

POLICIES = (
    "lru",
    "seglen",
    "flop-aware:1",
    "marconi",
    "gittins-basic",
    "gittins",
    "exact+lru",
    "foresight+gittins",
)


def rules(policy: str, slots: int, tokens: int, kinds: tuple[Kind, ...] = tuple(Kind)) -> LiveRules:
    admission, eviction = parse_policy(policy).build(Currency())
    return LiveRules(slots, tokens, admission, eviction, Currency(), kinds)


def traffic(seed: int, requests: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(prompt, answer): continued, cut, repeated and forked, over three token ids, so that much is shared."""
    rng = np.random.default_rng(seed)
    history, found = [np.array([1, 2, 3], np.int32)], []
    for _ in range(requests):
        base = history[rng.integers(len(history))]
        more = rng.integers(0, 3, rng.integers(0, 20))
        prompt = np.concatenate([base[: rng.integers(1, len(base) + 1)], more]).astype(np.int32)[:120]
        answer = rng.integers(0, 3, rng.integers(1, 8)).astype(np.int32)
        found.append((prompt, answer))
        history = [*history[-20:], np.concatenate([prompt, answer])[:100]]
    return found


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=12)
@given(seed=st.integers(0, 2**32 - 1), slots=st.integers(4, 14), tokens=st.integers(260, 600))
def test_tables_balance_after_every_request(policy: str, seed: int, slots: int, tokens: int) -> None:
    live = rules(policy, slots, tokens)
    for prompt, answer in traffic(seed, 60):
        served = live.serve(prompt, answer)
        assert 0 <= served.hit_tokens <= served.kv_tokens < len(prompt)
        assert sum(served.lost.values()) == served.kv_tokens - served.hit_tokens
        live.check()


@pytest.mark.parametrize("policy", ["lru", "exact+lru", "gittins-basic"])
def test_without_pressure_it_is_the_simulator(policy: str) -> None:
    """Nothing is evicted, so order and room don't matter: every request gets what the simulator gives it."""
    admission, eviction = parse_policy(policy).build(Currency())
    simulator = Simulator(Capacity(), admission, eviction, Currency())
    live = rules(policy, 10_000, 1_000_000)
    for i, (prompt, answer) in enumerate(traffic(5, 300)):
        expected = simulator.serve(Request(str(i), 0, float(i), prompt, answer))
        served = live.serve(prompt, answer)
        assert (served.hit_tokens, served.kv_tokens) == (expected.hit_tokens, expected.kv_tokens), i


def test_a_running_request_holds_a_slot_and_its_start_is_pinned() -> None:
    """Four slots: the first request's two states and the second's own slot leave one, which its prompt's end
    takes; the last token's state is its own slot."""
    live = rules("exact+lru", 4, 1_000)
    live.serve(np.arange(10, dtype=np.int32), np.arange(3, dtype=np.int32))
    assert live.tree.num_states == 2
    live.serve(np.array([*range(10), 0, 1, 2, 50], np.int32), np.arange(4, dtype=np.int32))
    assert live.tree.num_states == 4 and live.runtime.counts["state_evictions"] == 0
    live.serve(np.array([90, 91], np.int32), np.arange(2, dtype=np.int32))
    assert live.tree.num_states == 4 and live.runtime.counts["state_evictions"] == 2


def test_a_copied_start_may_go_for_kv_of_its_own_answer() -> None:
    """A state that a running request has copied may go; the KV that it computes on stays."""
    prices = Currency(state_bytes=10, kv_bytes_per_token=1)
    live = LiveRules(0, 0, *parse_policy("exact+lru").build(prices), prices, shared_bytes=60)
    live.serve(np.arange(10, dtype=np.int32), np.arange(2, dtype=np.int32))
    assert live.tree.num_states == 2
    served = live.serve(np.array([*range(10), 0, 50], np.int32), np.arange(100, 139, dtype=np.int32))
    live.check()
    assert served.hit_tokens == 11 and live.tree.num_tokens == 50
    assert live.tree.num_states == 1 and live.runtime.counts["state_evictions"] == 2


def test_kv_that_no_state_reaches_goes_first() -> None:
    """Only prompts' ends are saved: each answer is dead weight, and the oldest goes when KV is short."""
    live = rules("exact+lru", 10, 40, kinds=(Kind.PROMPT_END,))
    live.serve(np.arange(10, dtype=np.int32), np.arange(100, 105, dtype=np.int32))
    live.serve(np.arange(50, 60, dtype=np.int32), np.arange(100, 105, dtype=np.int32))
    assert live.tree.num_tokens == 28
    live.serve(np.arange(70, 80, dtype=np.int32), np.arange(100, 105, dtype=np.int32))
    assert live.tree.num_tokens == 37 and live.tree.num_states == 3  # the last token goes with the answer
    hit = live.serve(np.arange(11, dtype=np.int32), np.arange(100, 102, dtype=np.int32))
    assert (hit.hit_tokens, hit.kv_tokens) == (9, 9)


def test_too_large_a_request_is_an_error_that_names_the_pool() -> None:
    with pytest.raises(ValueError, match="tokens"):
        rules("lru", 4, 20).serve(np.arange(30, dtype=np.int32), np.arange(2, dtype=np.int32))


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_flush_empties_the_cache_and_nothing_of_the_policy(seed: int) -> None:
    live = rules("gittins", 8, 400)
    for prompt, answer in traffic(seed, 40):
        live.serve(prompt, answer)
    tick, learned = live.runtime.tick, live.runtime.eviction.parameters()
    live.flush()
    live.check()
    assert live.tree.num_states == live.tree.num_tokens == live.runtime.table.num_live == 0
    assert (live.runtime.tick, live.runtime.eviction.parameters()) == (tick, learned)
    prompt, answer = traffic(seed, 1)[0]
    assert live.serve(prompt, answer).kv_tokens == 0
    assert live.serve(prompt, answer).kv_tokens == len(prompt) - 1
    live.check()
