"""States inside answers, on the real cache without an engine: which pass saves one, and who has its slot when."""

from __future__ import annotations

from array import array

import pytest
from engineless_cache import Driver, decode_batch, publish_settings
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.mem_cache.allocation import alloc_token_slots
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from marconi_ext.policies.table.checkpoints import Kind

GRID = 16
PROMPT, ANSWER = array("q", range(1_000, 1_020)), array("q", range(2_000, 2_050))


@pytest.fixture
def driver() -> Driver:
    """One request at a time; every answer leaves a state on the way."""
    publish_settings(64)
    return saving_inside(slots=6)


def saving_inside(slots: int, page_size: int = 1) -> Driver:
    driver = Driver("marconi", slots=slots, tokens=2_000, context_tokens=200, requests=2, page_size=page_size)
    driver.cache.mamba.runtime.admission.answer_grid = lambda _prompt_class: GRID
    return driver


def prefilled(driver: Driver) -> Req:
    req = driver.match(1, PROMPT, len(ANSWER))
    driver.prefill(req)
    return req


def decode(driver: Driver, req: Req) -> None:
    """One token's room."""
    end = req.kv.kv_committed_len
    fresh = alloc_token_slots(driver.cache, 1)
    driver.cache.req_to_token_pool.write((req.kv.req_pool_idx, slice(end, end + 1)), fresh)
    req.kv.kv_allocated_len = req.kv.kv_committed_len = end + 1


def test_the_pass_at_each_multiple_fills_one_slot(driver: Driver) -> None:
    req, answers = prefilled(driver), driver.cache.mamba.answers
    saved, held = {}, driver.cache.slot_census()["held"]
    for _ in range(40):
        decode(driver, req)
        batch = decode_batch([req])
        answers.track(batch)
        if batch.mamba_track_mask[0]:
            saved[req.kv.kv_committed_len] = batch.mamba_track_indices.item()
    assert list(saved) == [32, 48] and len(set(saved.values())) == 1
    assert driver.cache.slot_census()["held"] == held + 1
    assert saved[32] != req.kv.mamba_pool_idx.item()


def test_a_mixed_batch_saves_nothing(driver: Driver) -> None:
    """SGLang tracks no decoded rows of a batch that prefills as well."""
    req = prefilled(driver)
    while req.kv.kv_committed_len < 32:
        decode(driver, req)
    batch = decode_batch([req], ForwardMode.MIXED)
    driver.cache.mamba.answers.track(batch)
    assert not batch.mamba_track_mask.any() and driver.cache.slot_census()["held"] == 0


def test_the_last_one_serves_whoever_parts_below_it(driver: Driver) -> None:
    driver.serve(1, PROMPT, ANSWER)
    cache = driver.cache
    assert cache.mamba.held.by_kind()[Kind.IN_ANSWER] == 1
    assert cache.slot_census()["held"] == cache.slot_census()["unaccounted"] == 0
    driver.serve(2, PROMPT + ANSWER[:-3] + array("q", [7, 8, 9]), ANSWER)
    assert driver.hit_tokens == (len(PROMPT) + len(ANSWER) - 1) // GRID * GRID == 64
    assert cache.census.differences() == []


def test_an_abort_gives_the_slot_back(driver: Driver) -> None:
    req = prefilled(driver)
    free = driver.cache.slot_census()["free"]
    driver.finish(req, ANSWER, keep=False)
    census = driver.cache.slot_census()
    assert census["held"] == census["unaccounted"] == 0 and census["free"] == free + 1  # the running slot
    assert driver.cache.mamba.held.by_kind()[Kind.IN_ANSWER] == 0
    assert driver.cache.census.differences() == []


def test_without_room_there_is_none() -> None:
    publish_settings(64)
    driver = saving_inside(slots=1)
    driver.serve(1, PROMPT, ANSWER)  # its running slot is the only one
    assert driver.cache.mamba.held.by_kind() == {Kind.LAST_TOKEN: 1}
    assert (
        driver.cache.mamba.ledger.counters["skipped_no_slot"] + driver.cache.mamba.ledger.counters["refused"]
        > 2
    )
    assert driver.cache.slot_census()["unaccounted"] == 0
    assert driver.cache.census.differences() == []


def test_of_pages_those_on_the_grid_are_tracked() -> None:
    publish_settings(64)
    driver = saving_inside(slots=6, page_size=8)
    req, tracked = prefilled(driver), []
    for tokens in range(21, 61):
        req.kv.kv_committed_len = tokens
        batch = decode_batch([req])
        at, follows = tokens % 8 == 0, tokens % 8 == 7  # as SGLang says it
        batch.mamba_track_mask[0] = at
        batch.mamba_track_mask_cpu, batch.mamba_track_mask_next_cpu = [at], [follows]
        driver.cache.mamba.answers.track(batch)
        assert batch.mamba_track_mask.tolist() == batch.mamba_track_mask_cpu
        tracked += [tokens] if batch.mamba_track_mask_cpu[0] else []
        tracked += [-tokens] if batch.mamba_track_mask_next_cpu[0] else []
    assert tracked == [-31, 32, -47, 48]
