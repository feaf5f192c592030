"""A model, and 500 requests with the answers that the engine gives with its prefix cache off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from live_server import Answer, LiveServer, running

from marconi_ext.models.toy_model import ToyModel, write_model
from marconi_ext.traces.script import Histories, Script, in_order
from marconi_ext.traces.workloads import AgentSizes, FewShotSizes, ForkSizes, agent, few_shot, fork

VOCABULARY = 4_096
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


def mixed_workload() -> list[Script]:
    """Agent sessions, few-shot questions (1-token ones too) and forks one token apart: 500 requests."""
    answers = (2, 9)
    return [
        *agent(AgentSizes(20, 8, 300, (1, 120), answers), 1, VOCABULARY),
        *few_shot(FewShotSizes(160, 6, (60, 400), (1, 40), (1, 4)), 2, VOCABULARY),
        *fork(ForkSizes(20, 4, 5, 1, 130, (1, 90), answers), 3, VOCABULARY),
    ]


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
