"""All KV that counts as evictable can be evicted: SGLang admits requests against it, and ends where it lied."""

from __future__ import annotations

import random
from array import array

import engineless_cache
import pytest
from engineless_cache import Driver
from sglang.srt.mem_cache.base_prefix_cache import EvictParams

PAGES = [1, 16, 64]
ANSWER = array("q", [1] * 8)


@pytest.fixture(scope="module", autouse=True)
def settings() -> None:
    engineless_cache.publish_settings()


def assert_all_can_go(driver: Driver) -> None:
    cache = driver.cache
    evictable = cache.full_evictable_size()
    assert cache.full_protected_size() == 0
    assert cache.evict_for_alloc(EvictParams(num_tokens=evictable)).num_tokens_evicted == evictable
    census = cache.kv_census()
    assert cache.full_evictable_size() == census["cached"] == 0 and census["free"] == census["pool"]
    assert cache.slot_census()["unaccounted"] == 0


@pytest.mark.parametrize("page_size", PAGES)
def test_follow_ups_that_add_no_page(page_size: int) -> None:
    """Long documents, and questions and answers that together don't reach the next page: nothing is inserted."""
    driver = Driver("marconi", slots=64, tokens=64 * 40, context_tokens=1_024, page_size=page_size)
    for document in range(30):
        begin = array("q", range(1_000 * document, 1_000 * document + 6 * 64))
        driver.serve(3 * document, begin + array("q", [5, 6, 7]), ANSWER)
        for question in range(2):
            driver.serve(3 * document + 1 + question, begin + array("q", [50 + question] * 10), ANSWER)
            assert driver.hit_tokens
    assert_all_can_go(driver)


@pytest.mark.parametrize("page_size", PAGES)
def test_a_request_that_ends_without_an_insert(page_size: int) -> None:
    driver = Driver("marconi", slots=24, tokens=64 * 20, context_tokens=1_024, page_size=page_size)
    prompt = array("q", range(2 * 64))
    driver.serve(0, prompt + array("q", [5]), ANSWER)
    driver.cache.mamba.serving.kinds = frozenset()  # nothing to save on the way
    aborted = driver.match(1, prompt + array("q", [5, *ANSWER[:-1], 9, 9]), len(ANSWER))
    driver.prefill(aborted)
    driver.finish(aborted, ANSWER, keep=False)
    assert_all_can_go(driver)


@pytest.mark.parametrize("page_size", PAGES)
@pytest.mark.parametrize("seed", range(4))
def test_any_traffic(page_size: int, seed: int) -> None:
    rng = random.Random(seed)
    driver = Driver("marconi", slots=30, tokens=64 * 60, context_tokens=1_024, page_size=page_size)
    histories = [array("q", rng.choices(range(50), k=200))]
    for number in range(150):
        old = rng.choice(histories)
        prompt = (old[: rng.randrange(1, len(old) + 1)] + array("q", rng.choices(range(50), k=20)))[:600]
        req = driver.match(number, prompt, len(ANSWER))
        driver.prefill(req)
        answer = array("q", rng.choices(range(50), k=rng.randrange(2, 90)))
        driver.finish(req, answer, keep=rng.random() < 0.8)
        histories.append(prompt + answer)
        driver.cache.mamba.runtime.table.check()
    assert_all_can_go(driver)
