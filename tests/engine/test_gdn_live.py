"""Gated DeltaNet on the real engine: exact hits, and the answers of an empty cache, over the same requests twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from live_server import running

from marconi_ext.models.gdn import GdnModel
from marconi_ext.models.seeded import write_folder
from marconi_ext.traces.script import draw_tokens

pytestmark = pytest.mark.engine


def test_hits_are_exact_and_outputs_those_of_an_empty_cache(tmp_path: Path) -> None:
    model = GdnModel()
    folder = write_folder(tmp_path / "gdn", model.config(), model.weights)
    rng = np.random.default_rng(0)
    ids = draw_tokens(rng, 3_000, model.vocab).tolist()
    system = ids[:150]
    prompts = [ids[:200], [*system, *ids[300:350]], [*system, *ids[400:460]], [*ids[:200], *ids[500:530]]]
    prompts += [[*system[:97], *ids[i : i + 70 + i % 7]] for i in range(600, 2_000, 100)]
    prompts += [[*prompts[4], ids[5]], [*prompts[4], ids[5], ids[6]], prompts[4][:-1]]
    requests = [(prompt, 6) for prompt in prompts]
    with running(folder, marconi_eviction="exact+lru") as live:
        alone = []
        for prompt, answer_tokens in requests:
            live.server.flush_cache()
            alone.append(live.generate(prompt, answer_tokens))
        live.server.flush_cache()
        passes = [[live.generate(*request) for request in requests]]
        passes.append(live.generate_all(requests, 8))
        live.assert_nothing_leaked()
    assert [answer.cached_tokens for answer in passes[0][:4]] == [0, 0, 150, 199]
    assert [answer.cached_tokens for answer in passes[1]] == [len(prompt) - 1 for prompt in prompts]
    for shared in passes:
        for one, other in zip(shared, alone, strict=True):
            assert one.output_ids == other.output_ids
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4, rtol=0)
