"""More requests than stock's cap lets run: as many as have slots, none is stuck, none ends the server."""

from __future__ import annotations

import random

import engineless_cache
import pytest
from engineless_cache import Driver
from small_scheduler import SmallScheduler

from sglang_hooks.radix import component
from sglang_hooks.radix.concurrency import has_slots_for, slots_per_request, slots_set_aside


@pytest.fixture(scope="module", autouse=True)
def settings() -> None:
    engineless_cache.publish_settings()


@pytest.mark.parametrize(("page", "expected"), [(1, 2), (16, 4)])
def test_slots_a_request(page: int, expected: int) -> None:
    """Of stock's five: three and two that are tracked."""
    assert slots_per_request(5, page) == expected


def pressed(page: int, seed: int, slots: int = 24) -> tuple[SmallScheduler, int]:
    """A scheduler after 80 requests on a pool that has just the slots for those that run, and how many ran at most."""
    rng = random.Random(f"{seed} {page}")
    most = slots // slots_per_request(5, page)
    driver = Driver("marconi", slots=slots, tokens=2_600, context_tokens=2_048, requests=most, page_size=page)
    chunk_tokens = rng.choice([None, 64, 512])
    scheduler = SmallScheduler(driver, rng, chunk_tokens, most, overlap=rng.random() < 0.5)
    scheduler.ended = [[rng.randrange(50) for _ in range(200)]]
    submitted = stuck = ran = 0
    while submitted < 80 or not scheduler.idle:
        while submitted < 80 and len(scheduler.waiting) < 2 * most:
            old = rng.choice(scheduler.ended[-12:])
            more = [rng.randrange(50) for _ in range(rng.choice([5, 40, 200]))]
            scheduler.submit(
                (old[: rng.randrange(1, len(old) + 1)] + more)[:700], limit := rng.randrange(20, 50), limit
            )
            submitted += 1
        stuck = 0 if scheduler.step() else stuck + (not scheduler.idle)
        assert stuck < 5, "requests wait, and nothing runs"
        ran = max(ran, len(scheduler.running))
        driver.cache.mamba.runtime.table.check()
    assert len(scheduler.ended) == submitted + 1
    return scheduler, ran


@pytest.mark.parametrize("page", [1, 16])
@pytest.mark.parametrize("seed", range(2))
def test_a_pool_runs_as_many_as_it_has_slots_for(page: int, seed: int) -> None:
    scheduler, ran = pressed(page, seed)
    assert ran == 24 // slots_per_request(5, page) > 24 // 5
    assert scheduler.cache.slot_census()["unaccounted"] == 0 == scheduler.cache.mamba.ledger.held_slots
    assert not scheduler.cache.mamba.runtime.table.pins.any()


def test_without_the_wait_a_request_finds_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("small_scheduler.has_slots_for", lambda *_: True)
    monkeypatch.setattr(component, "slots_set_aside", lambda pool: 1)
    with pytest.raises(AssertionError, match="mamba cache"):
        for seed in range(60):
            pressed(1, seed)


def test_slots_that_sglang_set_aside_count_as_free() -> None:
    driver = Driver("marconi", slots=6, tokens=500, context_tokens=256, requests=3)
    pool = driver.cache.req_to_token_pool
    pool.mamba_allocator.alloc_group_begin(4)
    assert (slots_set_aside(pool), pool.mamba_allocator.available_size()) == (4, 2)
    pool.mamba_allocator.alloc(1)
    assert slots_set_aside(pool) == 3
    req = engineless_cache.Req("a", "", engineless_cache.array("q", [1, 2, 3]), None)
    assert has_slots_for(driver.cache, req, [])
    assert not has_slots_for(driver.cache, req, [req] * 5)
