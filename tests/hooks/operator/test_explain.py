"""What a prompt is said to find is what it finds when it is sent, request by request, in a small pool."""

from __future__ import annotations

import random

import pytest
from engineless_cache import Driver, publish_settings
from small_scheduler import SmallScheduler

from sglang_hooks.operator.desk import RefusedError

FOUND = (
    "prompt_tokens",
    "hit_tokens",
    "kv_tokens",
    "divergence",
    "nearest_state",
    "lost",
    "lost_tokens",
    "lost_flops",
)


@pytest.mark.parametrize("page", [1, 16])
def test_said_before_is_found_after(page: int) -> None:
    publish_settings(64)
    driver = Driver("marconi", slots=24, tokens=3_200, context_tokens=3_200, requests=4, page_size=page)
    rng, mamba = random.Random(page), driver.cache.mamba
    scheduler = SmallScheduler(driver, rng, 128, 4, overlap=False)
    sent: list[list[int]] = [[rng.randrange(50) for _ in range(200)]]
    seen = {"lost": 0, "without": 0, "refused": 0}
    for number in range(150):
        begin = rng.choice(sent[-8:])[: rng.randrange(1, 260)]
        prompt = [*begin, *(rng.randrange(50) for _ in range(rng.randrange(1, 60)))]
        sent.append(prompt)
        before = mamba.explainer.answer({"prompt": prompt})
        nodes = len(driver.cache.tree_core._node_arena)
        assert mamba.explainer.answer({"prompt": prompt}) == before
        assert len(driver.cache.tree_core._node_arena) == nodes, "asking has split an edge"
        scheduler.submit(prompt, 3, 3)
        while not scheduler.idle:
            assert scheduler.step()
        told = mamba.explainer.answer({"request": str(number)})
        assert {name: told[name] for name in FOUND} == {name: before[name] for name in FOUND}
        assert told["without_state"] == before["without_state"]
        assert sum(told["lost"].values()) == told["lost_tokens"] == told["kv_tokens"] - told["hit_tokens"]
        assert "tokens" not in told, "token ids weren't allowed"
        seen["lost"] += told["lost_tokens"] > 0
        seen["without"] += bool(told["without_state"])
        seen["refused"] += any(place["outcome"].startswith("refused") for place in told["wanted"])
        assert all(place["outcome"] != "being saved" for place in told["wanted"])
    assert min(seen.values()) > 3, seen
    with pytest.raises(RefusedError, match="isn't among the last"):
        mamba.explainer.answer({"request": "none"})
    with pytest.raises(RefusedError, match="at least one token id"):
        mamba.explainer.answer({"prompt": []})
