"""Salts, extra keys and LoRA adapters keep prompts apart, in SGLang's own request objects: nothing is reused across."""

from __future__ import annotations

from array import array
from itertools import product

import engineless_cache
import pytest
from engineless_cache import Driver
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.sampling.sampling_params import SamplingParams

ADAPTERS = (None, "a" * 32, "b" * 32)
SOME = (None, "a", "b", "ab")
PROMPT, ANSWER = array("q", range(100, 220)), array("q", [7, 8, 9])


@pytest.mark.parametrize("page", [1, 16])
def test_nothing_is_reused_across_and_everything_within(page: int) -> None:
    engineless_cache.publish_settings(64)
    driver = Driver("marconi", slots=300, tokens=16_000, context_tokens=512, page_size=page)
    names = list(product(SOME, SOME, ADAPTERS))
    found = [[hit_tokens(driver, *name) for name in names] for _ in range(2)]
    assert found[0] == [0] * len(names)
    assert found[1] == [(len(PROMPT) - 1) // page * page] * len(names)
    assert driver.cache.census.differences() == []


def hit_tokens(driver: Driver, salt: str | None, key: str | None, adapter: str | None) -> int:
    """Of one request from its match to its end."""
    params = SamplingParams(temperature=0, max_new_tokens=len(ANSWER))
    req = Req(f"{salt} {key} {adapter}", "", PROMPT, params, cache_salt=salt, extra_key=key, lora_id=adapter)
    req.init_next_round_input(driver.cache)
    req.lock = driver.cache.lock(req.last_node)
    req.extend_end = len(PROMPT)
    found = req.prefix_len
    driver.prefill(req)
    driver.finish(req, ANSWER)
    return found
