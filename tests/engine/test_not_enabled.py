"""Installed but not enabled, or enabled on a model it can't serve, the extension changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from live_server import LiveServer, running

from marconi_ext.models.attention_model import write_attention_model

pytestmark = pytest.mark.engine

VOCABULARY = 4_096
PROMPTS = [
    ([1_000 + (i * 37 + k * (k // 150 == i)) % 3_000 for k in range(200 + 40 * i)], 4) for i in range(4)
] * 2


def behaviour(live: LiveServer) -> tuple[list[object], str]:
    """Hits and outputs of repeated and overlapping prompts from an empty cache, and the tree's class."""
    live.server.flush_cache()
    answers = [live.generate(*prompt) for prompt in PROMPTS]
    built = [line for line in live.server.log_text().splitlines() if "Tree cache initialized" in line]
    return [(a.cached_tokens, a.output_ids, a.logprobs) for a in answers], built[0].split("initialized")[1]


def test_installed_but_not_enabled(model: Path, stock: LiveServer) -> None:
    """The same tree class, hits and outputs as where SGLang doesn't even load the extension's plugin."""
    found = behaviour(stock)
    assert stock.marconi() is None
    with running(model, marconi=False, log_level="info", env={"SGLANG_PLUGINS": "marconi_cpu"}) as live:
        assert found == behaviour(live)
    assert "impl=UnifiedRadixCache" in found[1]


def test_a_pure_transformer_runs_as_stock_and_says_so_once(tmp_path: Path) -> None:
    write_attention_model(tmp_path / "model", VOCABULARY)
    with running(tmp_path / "model", env={"SGLANG_PLUGINS": "marconi_cpu"}, marconi=False) as live:
        expected = [live.generate(*prompt) for prompt in PROMPTS]
    with running(tmp_path / "model") as live:
        assert [live.generate(*prompt) for prompt in PROMPTS] == expected
        assert live.marconi() is None
        assert live.server.log_text().count("serving as stock SGLang") == 1
