"""Two replicas behind SGLang's own dispatcher: a tree, a policy and metrics each, and the answers of an empty cache."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import numpy as np
import pytest
from engine_in_process import Engines, Job, Said
from live_server import LiveServer, running
from server_pair import Answer
from speculative_traffic import VOCABULARY, record

from marconi_ext.commands.server_setup import small_model
from marconi_ext.models.families import write_small_model
from marconi_ext.watch.rates import as_json
from marconi_ext.watch.server import WatchedServer

pytestmark = pytest.mark.engine

Case = tuple[np.ndarray, int, Answer | Said]

REQUESTS = 150  # of the mixed workload


def hits_of_both(live: LiveServer, some: list[Case]) -> int:
    """Ask for all cases twice, eight at a time; both replicas serve, their trees are right. Returns: tokens reused."""
    for _ in range(2):
        answers = live.generate_all([(prompt, tokens) for prompt, tokens, _ in some], concurrency=8)
        for number, ((_, _, expected), answer) in enumerate(zip(some, answers, strict=True)):
            assert answer.output_ids == expected.output_ids, f"request {number}"
            np.testing.assert_allclose(answer.logprobs, expected.logprobs, atol=1e-4, rtol=0)
    live.assert_nothing_leaked()
    replicas = [live.marconi(rank) for rank in range(2)]
    for facts in replicas:
        assert facts["slots"]["unaccounted"] == facts["slots"]["held"] == facts["table"]["differences"] == 0
        assert facts["table"]["live_rows"] == facts["table"]["states"] == facts["slots"]["cached"] > 0
        assert facts["stats"]["planning_failures"] == {}
    served = [facts["stats"]["requests"] for facts in replicas]
    assert sum(served) == 2 * len(some) and min(served) > len(some) / 2
    return sum(facts["stats"]["hit_tokens"] for facts in replicas)


def test_two_replicas(model: Path, cases: list[Case]) -> None:
    some = cases[:REQUESTS]
    options = {"dp_size": 2, "enable_metrics": True, "max_mamba_cache_size": 400}
    with running(model, **options) as live:
        assert hits_of_both(live, some) > 0.5 * 2 * sum(len(prompt) for prompt, _, _ in some)

        metrics = httpx.get(f"{live.server.url}/metrics", trust_env=False).text
        named = re.findall(r'^marconi_requests_total\{.*dp_rank="(\d)".*\}', metrics, re.MULTILINE)
        assert sorted(named) == ["0", "1"]
        shown = as_json(WatchedServer(live.server.url).poll(), None)
        assert shown["ranks"] == 2 and shown["total"]["requests"] == 2 * REQUESTS

        live.server.flush_cache()
        for rank in range(2):
            slots = live.marconi(rank)["slots"]
            assert slots["free"] == slots["pool"]


def test_replicas_of_attention(tmp_path: Path) -> None:
    """Attention and states are a replica's own, the layers in between are shared: Gated DeltaNet, as Qwen3.5 is run."""
    folder = write_small_model(tmp_path / "gdn", small_model("gdn", vocab=VOCABULARY))
    with Engines() as engines:
        recorded = engines.run(Job({"model_path": folder, "disable_radix_cache": True}, record))
    some = [
        (np.array(case.ask.prompt, np.int32), case.ask.answer_tokens, case.alone)
        for case in recorded
        if not case.ask.stops
    ]
    assert len(some) > 90
    with running(folder, tp_size=2, attn_dp_size=2, max_mamba_cache_size=400) as live:
        assert hits_of_both(live, some) > 0.4 * 2 * sum(len(prompt) for prompt, _, _ in some)
