"""What a prompt is said to find is what it finds when it is sent, request by request, in a small pool."""

from __future__ import annotations

import json
import random
from array import array

import pytest
from engineless_cache import Driver, publish_settings
from small_scheduler import SmallScheduler
from tree_nodes import nodes_of

from marconi_ext.watch.sealed_tokens import Key, unseal_excerpt
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


def test_token_ids_come_sealed_and_only_where_they_may() -> None:
    """Of a prompt and of a request: readable with the key of the question, absent without one or without the flag."""
    publish_settings(64)
    driver = Driver("marconi", slots=24, tokens=3_200, context_tokens=3_200, requests=4)
    mamba, key = driver.cache.mamba, Key.draw()
    mamba.explainer.expose_tokens = True
    held, prompt = [*range(40), *range(100, 150)], [*range(40), *range(200, 240)]
    driver.serve(0, array("q", held), array("q", [7, 8]))
    wanted = {"before": prompt[32:40], "sent": prompt[40:48], "held": [held[40:48]]}
    numbers = {"key": [key.high, key.low]}
    before = mamba.explainer.answer({"prompt": prompt, **numbers})
    driver.serve(1, array("q", prompt), array("q", [7, 8]))
    after = mamba.explainer.answer({"request": "1", **numbers})
    for told in (before, after):
        assert unseal_excerpt(told["tokens"], key) == wanted
        assert unseal_excerpt(told["tokens"], Key.draw()) != wanted
        assert "203" not in json.dumps(told["tokens"])
    for question in ({"prompt": prompt}, {"request": "1"}, {"request": "1", "key": "12"}):
        assert "tokens" not in mamba.explainer.answer(question)
    mamba.explainer.expose_tokens = False
    assert "tokens" not in mamba.explainer.answer({"prompt": prompt, **numbers})


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
        nodes = len(nodes_of(driver.cache))
        assert mamba.explainer.answer({"prompt": prompt}) == before
        assert len(nodes_of(driver.cache)) == nodes, "asking has split an edge"
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
