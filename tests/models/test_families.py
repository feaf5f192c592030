"""The small models of all families: the same bits for the same sizes, sensible numbers, errors that name the flag."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from marconi_ext.cli import app
from marconi_ext.commands.server_setup import small_model
from marconi_ext.errors import BadInputError
from marconi_ext.models.families import FAMILIES, write_small_model
from marconi_ext.models.tekken import TEKKEN_SPECIAL_TOKENS

VOCABULARY = 1_500


@pytest.mark.parametrize("family", FAMILIES)
def test_same_sizes_same_bits(family: str, tmp_path: Path) -> None:
    model = FAMILIES[family](vocab=VOCABULARY)
    for name in ("a", "b"):
        write_small_model(tmp_path / name, model)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    other = replace(model, seed=1).weights()
    tensors = model.weights()
    assert tensors.keys() == other.keys()
    drawn = [name for name, value in tensors.items() if value.std() > 1e-3]
    assert len(drawn) > 10 and not any(np.array_equal(tensors[name], other[name]) for name in drawn)
    assert not tensors["lm_head.weight"][:TEKKEN_SPECIAL_TOKENS].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_that_can_not_be_are_named(family: str) -> None:
    with pytest.raises(ValueError, match=r"^hidden must be at least 1"):
        FAMILIES[family](hidden=0)
    with pytest.raises(ValueError, match=r"^vocab must lie between"):
        FAMILIES[family](vocab=5)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--family", "rwkv"], "choose from mamba2, gdn"),
        (["--family", "gdn", "--pattern", "M*"], "--pattern: a model of family gdn has no such size"),
        (["--family", "kda", "--layers", "0"], "--layers must be at least 1"),
    ],
)
def test_the_command_names_the_flag(flags: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=words):
        CliRunner().invoke(app, ["model", str(tmp_path / "x"), *flags], catch_exceptions=False)
    assert not (tmp_path / "x").exists()


def test_demos_name_the_family() -> None:
    assert small_model("lfm2").config()["architectures"] == ["Lfm2ForCausalLM"]
    with pytest.raises(BadInputError, match="--family rwkv: choose from"):
        small_model("rwkv")
    with pytest.raises(
        BadInputError, match="--model-chunk 32: the small model of family gdn has no such size"
    ):
        small_model("gdn", "--model-chunk 32", chunk_size=32)
