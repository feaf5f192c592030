"""The worked example of docs/architecture.md, on the real engine: what each request reuses, to the token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from live_server import LiveServer, running

from marconi_ext.traces.script import draw_tokens

pytestmark = pytest.mark.engine


def reuse(live: LiveServer) -> list[int]:
    rng = np.random.default_rng(5)
    system, *users = (draw_tokens(rng, n, 4_096).tolist() for n in (500, 60, 70, 80, 40))
    a, b, c, follow_up = users
    first, second, third = (live.generate(system + user, 8) for user in (a, b, c))
    fourth = live.generate([*system, *c, *third.output_ids, *follow_up], 8)
    return [answer.cached_tokens for answer in (first, second, third, fourth)]


def test_with_the_extension(model: Path) -> None:
    with running(model) as live:
        assert reuse(live) == [0, 379, 500, 587]
        counters = live.marconi()["counters"]
        assert counters["published_branch"] == 1
        assert (
            counters["published_prompt-end"] >= 4 and counters["published_last-token"] >= 4
        )  # /health generates too


def test_stock(stock: LiveServer) -> None:
    stock.server.flush_cache()
    assert reuse(stock) == [0, 0, 448, 576]
