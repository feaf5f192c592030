"""Each state that leaves the device is counted under the reason for which it left, by either way out of the tree."""

from __future__ import annotations

from array import array
from collections import Counter

import engineless_cache
import pytest
from engineless_cache import Driver
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.hicache_storage import PoolName, PoolTransfer
from sglang.srt.mem_cache.unified_cache.components.base import CacheTransferPhase
from tree_nodes import nodes_of

from marconi_ext.policies.quotas import parse_quotas, quotas_in_slots
from sglang_hooks.node_states import holds_state
from sglang_hooks.radix.cache import MarconiRadixCache


@pytest.fixture(params=["our walk", "SGLang's walk"], autouse=True)
def _walk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    engineless_cache.publish_settings()
    if request.param != "our walk":
        monkeypatch.setattr(MarconiRadixCache, "simple", False)


class Site:
    """A cache, and what has been counted of it so far."""

    def __init__(self, *, slots: int = 200, tokens: int = 20_000) -> None:
        self.driver = Driver("marconi", slots=slots, tokens=tokens, context_tokens=1_024, policy="lru")
        self.cache = self.driver.cache
        self.served = 0

    def serve(self, prompts: int, extra_key: str | None = None) -> None:
        for _ in range(prompts):
            self.served += 1
            req = self.driver.match(self.served, array("q", [self.served, *range(60)]), 3)
            req.extra_key = extra_key
            self.driver.prefill(req)
            self.driver.finish(req, array("q", [7, 8, 9]))

    def evictions(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for (_, reason), states in self.cache.mamba.stats.evictions.items():
            found[reason] += states
        return found

    def assert_sound(self) -> None:
        stats = self.cache.mamba.stats
        held = stats.saves.total() + stats.returns.total() - stats.evictions.total()
        assert held == sum(stats.states_by_kind().values()) == self.cache.mamba_evictable_size()
        assert self.cache.census.differences() == []


def test_a_full_pool_of_states() -> None:
    site = Site(slots=20)
    site.serve(30)
    assert site.evictions().keys() == {"pool-full"}
    site.cache.evict_for_alloc(EvictParams(num_tokens=0, mamba_num=5))
    assert site.evictions().keys() == {"pool-full"}
    site.assert_sound()


def test_kv_that_goes_takes_its_state_along() -> None:
    site = Site(tokens=1_000)
    site.serve(30)
    assert site.evictions().keys() == {"kv-evicted"}
    site.assert_sound()


def test_a_tenant_beyond_its_ceiling() -> None:
    site = Site()
    site.cache.mamba.runtime.reserves.set_quotas(
        quotas_in_slots(parse_quotas('{"batch": {"ceiling": 0.1}}'), 200)
    )
    site.serve(30, "batch")
    site.serve(10)
    assert site.evictions().keys() == {"quota"}, "there is room for all in the pool"
    assert site.cache.mamba.runtime.reserves.states_by_tenant()["batch"] == 20
    site.assert_sound()


def test_a_flush() -> None:
    site = Site()
    site.serve(5)
    site.cache.reset()
    assert site.evictions() == {"flush": site.cache.mamba.stats.saves.total()} != {"flush": 0}


def test_what_stays_on_the_host_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two states one has a copy on the host: it isn't lost, and counts as returned when it is loaded."""
    monkeypatch.setattr(MarconiRadixCache, "simple", False)  # with a host tier the walk is SGLang's
    site = Site()
    site.serve(1)
    mamba = site.cache.mamba
    held = [node for node in nodes_of(site.cache) if holds_state(node)]
    copied = held[0]
    slot = copied.component_data[mamba.component_type].value
    copy = PoolTransfer(name=PoolName.MAMBA, host_indices=slot.clone())
    mamba.commit_hicache_transfer(copied, CacheTransferPhase.BACKUP_HOST, [copy], cache_actions=[])
    site.cache.evict_for_alloc(EvictParams(num_tokens=0, mamba_num=2))
    assert site.evictions() == {"host": 1, "pool-full": 1}
    back = PoolTransfer(
        name=PoolName.MAMBA,
        host_indices=slot,
        device_indices=site.cache.req_to_token_pool.mamba_allocator.alloc(1),
    )
    mamba.commit_hicache_transfer(copied, CacheTransferPhase.LOAD_BACK, [back], cache_actions=[])
    assert mamba.stats.returns.total() == 1
    site.assert_sound()
