"""The real cache in SGLang's overlap order: table and tree are compared after every step of every history.

Requests regenerate, fork and extend what was said before, so that they plan, bring and lose states at the same nodes;
some are of sessions, whose states go last. They are preempted, retracted and aborted at any point, states and KV are
evicted by hand, and states come back as from a host tier. The fault that this has to find is put back at the end.
"""

from __future__ import annotations

import engineless_cache
import pytest
from engineless_cache import Driver
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from overlap_scheduler import OverlapScheduler, refuses_whatever_came
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.hicache_storage import PoolName, PoolTransfer
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_cache.components.base import CacheTransferPhase
from tree_nodes import nodes_of

from marconi_ext.policies.held_states import HeldStates
from sglang_hooks.node_states import holds_state

MAMBA = ComponentType.MAMBA
SLOTS, TOKENS, REQUESTS = 18, 260, 4
LENGTHS = st.integers(1, 6)
SOMETHING = st.integers(0, 1 << 20)
FATES = st.sampled_from(["goes on", "retract", "preempt", "abort"])
SOMEONE = st.none() | st.integers(-1, 2)


@pytest.fixture(scope="module", autouse=True)
def _settings() -> None:
    engineless_cache.publish_settings(chunk_tokens=8)


class OverlapOrder(RuleBasedStateMachine):
    """One history of one cache."""

    @initialize(
        chunk_tokens=st.sampled_from([None, 5, 16]),
        policy=st.sampled_from(["gittins", "lru"]),
        sessions=st.booleans(),
        answer_grid=st.sampled_from([0, 2, 3]),
    )
    def start(self, chunk_tokens: int | None, policy: str, sessions: bool, answer_grid: int) -> None:
        self.driver = Driver(
            "marconi",
            slots=SLOTS,
            tokens=TOKENS,
            context_tokens=128,
            requests=REQUESTS,
            policy=policy,
            enable_session_radix_cache=sessions,
        )
        self.cache, self.sessions = self.driver.cache, sessions
        self.cache.mamba.runtime.admission.answer_grid = lambda _prompt_class: answer_grid
        self.scheduler = OverlapScheduler(self.driver, chunk_tokens, REQUESTS)
        self.loaded = 0
        self.said: list[list[int]] = [[1, 2, 3, 4, 5, 6]]
        self.prompts: list[list[int]] = [[1, 2, 3, 4, 5, 6]]

    def _ask(self, prompt: list[int], answer: list[int], stops: bool) -> None:
        if len(prompt) + len(answer) < 50 and len(self.scheduler.unfinished) < 8:
            req = self.scheduler.submit(prompt, answer, stops=stops)
            if self.sessions and (number := len(self.prompts) % 3):
                req.session_id = str(number)
                req.session_generation = self.cache.session_refs.ensure_session_generation(req.session_id)
            self.prompts.append(prompt)
            self.said.append(prompt + answer)

    @rule(which=SOMETHING, new=LENGTHS, token=st.integers(7, 9), answer=LENGTHS, stops=st.booleans())
    def go_on(self, which: int, new: int, token: int, answer: int, stops: bool) -> None:
        """The next turn: what was said, and something more."""
        self._ask(self.said[which % len(self.said)] + [token] * new, [token + 3] * answer, stops)

    @rule(which=SOMETHING, stops=st.booleans())
    def regenerate(self, which: int, stops: bool) -> None:
        """An earlier prompt again, with the same answer: it ends at a node that is there already."""
        number = which % len(self.prompts)
        prompt, said = self.prompts[number], self.said[number]
        self._ask(prompt, said[len(prompt) :] or [4], stops)

    @rule(which=SOMETHING, cut=SOMETHING, token=st.integers(7, 9), answer=LENGTHS)
    def fork(self, which: int, cut: int, token: int, answer: int) -> None:
        """Another way on from the middle of what was said."""
        said = self.said[which % len(self.said)]
        self._ask([*said[: 1 + cut % len(said)], token + 20], [token] * answer, False)

    @rule(which=SOMETHING, token=st.integers(30, 34), states=st.sampled_from([0, SLOTS]), fate=FATES)
    def race(self, which: int, token: int, states: int, fate: str) -> None:
        """A turn that was gone on from is regenerated; just before it ends another request parts where it will, and
        may lose its place before its own result is seen."""
        number = which % len(self.prompts)
        prompt, said = self.prompts[number], self.said[number]
        if not prompt < said or len(self.scheduler.unfinished) > 3:
            return
        self._ask([*said, token - 1, token - 1], [4], False)
        self._steps(6)
        self.evict(states or 1, 0)
        again = self.scheduler.submit(prompt, said[len(prompt) :])
        for _ in range(12):
            self._steps(1)
            if self.scheduler.about_to_end(again):
                break
        else:
            return
        parts = self.scheduler.submit([*said[:-1], token, token], [3, 3])
        self._steps(1)  # the one that parts is launched, the end of the other is seen
        if parts in self.scheduler.unfinished and fate == "abort":
            self.scheduler.abort(parts)
        self.scheduler.step(
            prefill=fate != "retract",
            preempt=-1 if fate == "preempt" else None,
            retract=-1 if fate == "retract" else None,
        )

    def _steps(self, steps: int) -> None:
        for _ in range(steps):
            self.scheduler.step()
            self.agrees()

    @rule(prefill=st.booleans(), preempt=SOMEONE, retract=SOMEONE)
    def step(self, prefill: bool, preempt: int | None, retract: int | None) -> None:
        self.scheduler.step(prefill=prefill, preempt=preempt, retract=retract)

    @rule(steps=st.integers(1, 4))
    def steps(self, steps: int) -> None:
        self._steps(steps)

    @rule(steps=st.integers(4, 20))
    def run_on(self, steps: int) -> None:
        self._steps(steps)

    @rule(which=SOMETHING)
    @precondition(lambda self: self.scheduler.unfinished)
    def abort(self, which: int) -> None:
        unfinished = self.scheduler.unfinished
        self.scheduler.abort(unfinished[which % len(unfinished)])

    @rule(states=st.integers(1, SLOTS), tokens=st.sampled_from([0, 0, 0, 5, TOKENS]))
    def evict(self, states: int, tokens: int) -> None:
        """By hand, as a running request would have it."""
        self.cache.evict_for_alloc(EvictParams(num_tokens=tokens, mamba_num=states))

    @rule(which=SOMETHING)
    def load_back(self, which: int) -> None:
        """A state comes to a node as from a host tier."""
        nodes = [node for node in nodes_of(self.cache) if not holds_state(node)]
        slot = self.pool_slot() if nodes else None
        if slot is not None:
            transfer = PoolTransfer(name=PoolName.MAMBA, host_indices=slot, device_indices=slot)
            phase = CacheTransferPhase.LOAD_BACK
            node = nodes[which % len(nodes)]
            self.cache.mamba.commit_hicache_transfer(node, phase, [transfer], cache_actions=[])
            self.loaded += 1

    def pool_slot(self):
        allocator = self.cache.req_to_token_pool.mamba_allocator
        return allocator.alloc(1) if allocator.available_size() > 2 * REQUESTS else None

    @rule(number=st.integers(1, 2))
    @precondition(lambda self: self.sessions)
    def end_session(self, number: int) -> None:
        """Its states may go like all others, also those of requests of it that still run."""
        self.cache.session_refs.release_radix_session(str(number))

    @rule()
    @precondition(lambda self: self.scheduler.idle)
    def flush(self) -> None:
        self.cache.reset()
        self.cache.req_to_token_pool.clear()
        self.cache.token_to_kv_pool_allocator.clear()

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "cache"):
            return
        mamba = self.cache.mamba
        assert self.cache.census.differences() == []
        assert self.cache.census.totals()["differences"] == 0
        mamba.runtime.table.check()
        stats = mamba.stats
        moved = stats.saves + stats.returns
        assert stats.returns.total() == self.loaded
        for (kind, reason), states in stats.evictions.items():
            assert reason in ("pool-full", "kv-evicted", "flush")
            moved[kind] -= states
        assert moved.total() == sum(stats.states_by_kind().values())
        assert stats.prompt_tokens == stats.hit_tokens + sum(stats.lost_tokens.values()) + stats.new_tokens

    def teardown(self) -> None:
        """Everything ends, and then everything may go."""
        if not hasattr(self, "cache"):
            return
        for _ in range(400):
            if self.scheduler.idle:
                break
            self.scheduler.step()
            self.agrees()
        assert self.scheduler.idle, "requests are left for ever"
        assert not self.cache.mamba.plans
        slots = self.cache.slot_census()
        assert slots["held"] == slots["unaccounted"] == 0, slots
        self.cache.evict_for_alloc(EvictParams(num_tokens=0, mamba_num=SLOTS))
        assert self.cache.mamba_evictable_size() == 0, "states that nobody can evict"
        self.cache.evict_for_alloc(EvictParams(num_tokens=TOKENS, mamba_num=0))
        assert self.cache.kv_census()["cached"] == 0
        assert self.cache.slot_census()["free"] == SLOTS
        self.agrees()


def run(examples: int, phases: tuple[Phase, ...] = (Phase.generate,)) -> None:
    run_state_machine_as_test(
        OverlapOrder,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            derandomize=True,
            database=None,
            phases=phases,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_table_and_tree_agree_in_every_order() -> None:
    run(150)


def test_finds_the_fault_when_it_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HeldStates, "abandon", refuses_whatever_came)
    with pytest.raises(AssertionError, match=r"live in the table|nobody can evict|sums differ"):
        run(60)
