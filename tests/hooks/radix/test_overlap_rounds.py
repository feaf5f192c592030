"""250 rounds of regenerated and forked conversations in SGLang's overlap order, where one in ten prefills is retracted
before its result is seen and states are evicted by hand: table and tree agree after every step, and nothing stays.
"""

from __future__ import annotations

import random

import engineless_cache
import pytest
from engineless_cache import Driver
from overlap_scheduler import OverlapScheduler, refuses_whatever_came
from sglang.srt.mem_cache.base_prefix_cache import EvictParams

from marconi_ext.policies.held_states import HeldStates

ROUNDS = 250
SLOTS, TOKENS, REQUESTS = 24, 600, 4
RETRACTED = 0.1


@pytest.fixture(scope="module", autouse=True)
def _settings() -> None:
    engineless_cache.publish_settings(chunk_tokens=8)


def play(rounds: int, policy: str) -> OverlapScheduler:
    driver = Driver(
        "marconi", slots=SLOTS, tokens=TOKENS, context_tokens=128, requests=REQUESTS, policy=policy
    )
    cache, rng = driver.cache, random.Random(5)
    scheduler = OverlapScheduler(driver, None, REQUESTS)

    def step(**how: int | bool | None) -> None:
        scheduler.step(**how)
        assert cache.census.differences() == []

    def finish() -> None:
        while not scheduler.idle:
            step()

    turns: list[tuple[list[int], list[int]]] = []  # prompts with their answers
    for number in range(rounds):
        if not turns or rng.random() < 0.3:
            turns = [*turns[-12:], ([number % 7, *rng.choices(range(10, 20), k=12)], [4, 5, 6])]
        prompt, answer = rng.choice(turns)
        whole = [*prompt, *answer]
        scheduler.submit(prompt, answer)
        finish()
        further = ([*whole, 20 + number % 9, 30], [40 + number % 7] * rng.randint(2, 4))
        scheduler.submit(*further)
        finish()
        if len(whole) < 30:
            turns.append(further)
        evicted = rng.choice([0, 1, SLOTS])
        cache.evict_for_alloc(EvictParams(num_tokens=0, mamba_num=evicted))
        assert cache.census.differences() == []
        again = scheduler.submit(prompt, answer)  # regenerate, and fork where that ends while it does
        while not scheduler.about_to_end(again):
            step()
        fork = scheduler.submit([*whole[: rng.choice([-1, -1, -2])], 50 + number % 5, 60], [70, 71])
        step()
        if rng.random() < RETRACTED:
            step(prefill=False, retract=-1)
            assert fork.is_retracted or fork in scheduler.waiting
        finish()
    return scheduler


@pytest.mark.parametrize("policy", ["gittins", "lru"])
def test_rounds(policy: str) -> None:
    scheduler = play(ROUNDS, policy)
    cache = scheduler.cache
    assert scheduler.retractions > ROUNDS * RETRACTED / 2
    slots = cache.slot_census()
    assert slots["held"] == slots["unaccounted"] == 0
    cache.evict_for_alloc(EvictParams(num_tokens=0, mamba_num=SLOTS))
    assert cache.mamba_evictable_size() == 0 and cache.slot_census()["free"] == SLOTS


def test_the_rounds_find_the_fault_when_it_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HeldStates, "abandon", refuses_whatever_came)
    with pytest.raises(AssertionError, match=r"live in the table|sums differ"):
        play(ROUNDS, "lru")
