"""Two replicas behind SGLang's own dispatcher: a tree, a policy and metrics each, and the answers of an empty cache."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import numpy as np
import pytest
from live_server import running
from server_pair import Answer

from marconi_ext.watch.rates import as_json
from marconi_ext.watch.server import WatchedServer

pytestmark = pytest.mark.engine

Case = tuple[np.ndarray, int, Answer]

REQUESTS = 150  # of the mixed workload


def test_two_replicas(model: Path, cases: list[Case]) -> None:
    some = cases[:REQUESTS]
    options = {"dp_size": 2, "enable_metrics": True, "max_mamba_cache_size": 400}
    with running(model, **options) as live:
        for _ in range(2):
            answers = live.generate_all([(prompt, tokens) for prompt, tokens, _ in some], concurrency=8)
            for number, ((_, _, expected), answer) in enumerate(zip(some, answers, strict=True)):
                assert answer.output_ids == expected.output_ids, f"request {number}"
                np.testing.assert_allclose(answer.logprobs, expected.logprobs, atol=1e-4, rtol=0)
        live.assert_nothing_leaked()
        replicas = [live.marconi(rank) for rank in range(2)]
        for facts in replicas:
            assert (
                facts["slots"]["unaccounted"] == facts["slots"]["held"] == facts["table"]["differences"] == 0
            )
            assert facts["table"]["live_rows"] == facts["table"]["states"] == facts["slots"]["cached"] > 0
            assert facts["stats"]["planning_failures"] == {}
        served = [facts["stats"]["requests"] for facts in replicas]
        assert sum(served) == 2 * REQUESTS and min(served) > REQUESTS / 2
        hits = sum(facts["stats"]["hit_tokens"] for facts in replicas)
        assert hits > 0.5 * 2 * sum(len(prompt) for prompt, _, _ in some)

        metrics = httpx.get(f"{live.server.url}/metrics", trust_env=False).text
        named = re.findall(r'^marconi_requests_total\{.*dp_rank="(\d)".*\}', metrics, re.MULTILINE)
        assert sorted(named) == ["0", "1"]
        shown = as_json(WatchedServer(live.server.url).poll(), None)
        assert shown["ranks"] == 2 and shown["total"]["requests"] == 2 * REQUESTS

        live.server.flush_cache()
        for rank in range(2):
            slots = live.marconi(rank)["slots"]
            assert slots["free"] == slots["pool"]
