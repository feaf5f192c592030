"""A model, and 500 requests with the answers that the engine gives with its prefix cache off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from live_server import LiveServer, running
from mixed_workload import VOCABULARY, mixed_workload
from server_pair import Answer

from marconi_ext.models.toy_model import ToyModel, write_model
from marconi_ext.traces.script import Histories, in_order

CHUNK_TOKENS = 64

Case = tuple[np.ndarray, int, Answer]
"""Prompt int32[L], tokens to answer, and the answer with the cache off."""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small hybrid model whose greedy answers vary and whose logprobs show a wrong state."""
    folder = tmp_path_factory.mktemp("models") / "hybrid"
    write_model(folder, ToyModel(chunk_size=CHUNK_TOKENS, vocab=VOCABULARY))
    return folder


@pytest.fixture(scope="session")
def stock(model: Path) -> Iterator[LiveServer]:
    """Stock SGLang with our plugin installed, for tests to share: flush first, leave nothing running."""
    with running(model, marconi=False, log_level="info", sleep_on_idle=True) as live:
        yield live


@pytest.fixture(scope="session")
def cases(model: Path) -> list[Case]:
    """Every request once, one at a time, with the prefix cache off."""
    scripts = mixed_workload()
    histories = Histories(scripts)
    recorded = []
    with running(model, marconi=False, disable_radix_cache=True) as live:
        for script, number in in_order(scripts):
            prompt = histories.prompt(script, number)
            answer_tokens = script.turns[number].answer_tokens
            answer = live.generate(prompt, answer_tokens)
            histories.answered(script, prompt, np.asarray(answer.output_ids, dtype=np.int32))
            recorded.append((prompt, answer_tokens, answer))
    assert len(recorded) == 500
    return recorded
