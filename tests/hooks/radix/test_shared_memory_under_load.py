"""One buffer for KV and states, full all the time: whoever is admitted can be served, and nobody waits forever."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import engineless_cache
import pytest
from engineless_cache import Driver
from sglang.srt.managers.schedule_policy import PrefillAdder
from sglang.srt.mem_cache.allocator.base import BaseTokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from small_scheduler import SmallScheduler

from sglang_hooks import seams

STATE = 32  # columns: a state costs as much as 46 tokens


@pytest.fixture(scope="module", autouse=True)
def settings() -> None:
    engineless_cache.publish_settings()


def install(monkeypatch: pytest.MonkeyPatch, cache: Any) -> None:
    """The hooks of admission, for this test alone."""
    monkeypatch.setattr(seams, "live", lambda: SimpleNamespace(cache=cache))
    for owner in (PrefillAdder, BaseTokenToKVPoolAllocator):
        for hook in seams.LIVE_HOOKS:
            path, _, name = hook.target.rpartition(".")
            if path.endswith(f".{owner.__name__}"):
                monkeypatch.setattr(owner, name, hooked(getattr(owner, name), hook))


def hooked(original: Callable[..., Any], hook: seams.Hook) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if hook.kind == "around":
            return hook.function(original, *args, **kwargs)
        result = original(*args, **kwargs)
        hook.function(result, *args, **kwargs)
        return result

    return call


@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("seed", range(8))
def test_whoever_is_admitted_is_served(page_size: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(f"{seed} {page_size}")
    requests, chunk_tokens = rng.choice([2, 4, 8]), rng.choice([None, 64, 128, 512])
    driver = Driver(
        "marconi",
        shared_bytes=rng.choice([40_000, 60_000, 100_000]),
        state_size=STATE,
        context_tokens=4_096,
        requests=requests,
        page_size=page_size,
    )
    cache = driver.cache
    install(monkeypatch, cache)
    scheduler = SmallScheduler(driver, rng, chunk_tokens, requests, overlap=rng.random() < 0.5)
    allocator = cache.token_to_kv_pool_allocator
    empty = allocator.available_size()
    # the longest prompt that a server takes leaves room for its own states and for its answer
    longest = min(empty - 3 * allocator.mamba_slot_full_token_cost() - 60 - 2 * page_size, 1_500)
    scheduler.ended = [[rng.randrange(50) for _ in range(200)]]
    submitted = stuck = 0
    while submitted < 80 or not scheduler.idle:
        while submitted < 80 and rng.random() < 0.5:
            old = rng.choice(scheduler.ended[-12:])
            more = [rng.randrange(50) for _ in range(rng.choice([5, 40, 200]))]
            prompt = (old[: rng.randrange(1, len(old) + 1)] + more)[:longest]
            limit = rng.randrange(2, 50)
            scheduler.submit(prompt, limit, rng.randrange(1, limit + 1))
            submitted += 1
        stuck = 0 if scheduler.step() else stuck + (not scheduler.idle)
        assert stuck < 5, "requests wait, and nothing runs"
        assert not allocator.verify_byte_accounting()
        cache.mamba.runtime.table.check()
    assert len(scheduler.ended) == submitted + 1
    assert cache.slot_census()["unaccounted"] == 0 == cache.full_protected_size()
    assert not cache.mamba.runtime.table.pins[cache.mamba.runtime.table.rows()].any()
    cache.evict_for_alloc(EvictParams(num_tokens=empty - allocator.available_size()))
    assert allocator.available_size() == empty
