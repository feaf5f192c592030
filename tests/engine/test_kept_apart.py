"""What isn't shared: prefixes of different LoRA adapters; what isn't kept: thinking that SGLang strips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from adapters import share_keys, write_adapter
from engine_in_process import Ask, Engine, Engines, Job, Said
from unequal_answers import unequal

from marconi_ext.models.toy_model import ToyModel, write_model

pytestmark = pytest.mark.engine

MODEL = ToyModel(chunk_size=64, vocab=4_096)
OFF, ON = {"disable_radix_cache": True}, {"enable_marconi": True}
Passes = tuple[list[Said], list[Said]]


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    with Engines() as running:
        yield running


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "hybrid", MODEL)


def assert_nothing_is_lost(engine: Engine) -> None:
    facts = engine.marconi()
    if facts is not None:
        assert facts["slots"]["unaccounted"] == facts["slots"]["held"] == facts["table"]["differences"] == 0


@dataclass(frozen=True)
class AskAdapters:
    """A task: 24 prompts that share prefixes, each by the model alone and by both adapters, four at a time, twice."""

    folders: dict[str, Path]

    def __call__(self, engine: Engine) -> Passes:
        from sglang.srt.lora.lora_registry import LoRARef

        names = [None, *(LoRARef.deterministic_id(name, str(path)) for name, path in self.folders.items())]
        rng = np.random.default_rng(0)
        system, asks = rng.integers(100, 4_000, 150).tolist(), []
        for number in range(24):
            prompt = [*system[: 150 - number % 7], *rng.integers(100, 4_000, 20 + number).tolist()]
            asks += [Ask(prompt, 6, fields={"lora_id": name}) for name in names]
        passes = engine.ask(asks, 4), engine.ask(asks, 4)
        assert_nothing_is_lost(engine)
        return passes


def test_adapters_share_no_prefix(engines: Engines, model: Path, tmp_path: Path) -> None:
    folders = {name: write_adapter(tmp_path / name, MODEL, seed) for seed, name in enumerate("ab")}
    options = {
        "model_path": model,
        "enable_lora": True,
        "lora_paths": [f"{name}={folder}" for name, folder in folders.items()],
        "lora_backend": "torch_native",
    }
    task = AskAdapters(folders)
    alone, _ = engines.run(Job({**options, **OFF}, task))
    assert all(unequal(alone[first::3], alone[second::3]) for first, second in ((0, 1), (0, 2), (1, 2)))
    first, second = engines.run(Job({**options, **ON}, task))
    assert unequal(first, alone) == unequal(second, alone) == []
    assert sum(said.cached_tokens for said in first) > 4_000
    wrong = engines.run(Job({**options, **ON}, task, before=share_keys))
    assert len(unequal(wrong[0], alone)) > 24


def think(engine: Engine) -> tuple[list[Said], list[int]]:
    """A task: conversations of three turns whose answers are all thinking, which the client drops or sends back; and
    the length of what each prompt shares with the one before it."""
    engine.scheduler.model_config.think_end_ids = [-1]  # never said
    rng = np.random.default_rng(0)
    said, shared = [], []
    for number in range(16):
        prompt = rng.integers(100, 4_000, 80 + number).tolist()
        for turn in range(3):
            said += engine.ask([Ask(prompt, 12, fields={"require_reasoning": True})])
            shared.append(len(prompt))
            prompt = [
                *prompt,
                *(said[-1].output_ids if turn % 2 else []),
                *rng.integers(100, 4_000, 30).tolist(),
            ]
    assert_nothing_is_lost(engine)
    return said, shared


def test_stripped_thinking_leaves_the_prompt(engines: Engines, model: Path) -> None:
    """A turn resumes at the end of the prompt before it, though the answer that its client sent back isn't cached."""
    alone, _ = engines.run(Job({"model_path": model, **OFF}, think))
    said, lengths = engines.run(Job({"model_path": model, **ON, "strip_thinking_cache": True}, think))
    assert unequal(said, alone) == []
    reused = [one.cached_tokens for one in said]
    assert [reused[turn] for turn in range(len(said)) if turn % 3] == [
        lengths[turn - 1] - 1 for turn in range(len(said)) if turn % 3
    ]
