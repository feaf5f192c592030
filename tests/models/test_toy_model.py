"""The bundled model: the same bits for the same options, a tokenizer that round-trips, sensible numbers."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from marconi_ext.models.tekken import TEKKEN_SPECIAL_TOKENS
from marconi_ext.models.toy_model import ToyModel, weights, write_model

SMALL = ToyModel(vocab=1500)


def test_same_options_same_bits(tmp_path):
    for name in ("a", "b"):
        write_model(tmp_path / name, SMALL)
    for file in ("config.json", "model.safetensors", "tekken.json", "generation_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_bits_are_pinned():
    """Results recorded with this model stay comparable; change the numbers only on purpose."""
    tensors = weights(SMALL)
    assert tensors["backbone.embeddings.weight"][1499, 63] == np.float32(-0.63397753)
    assert tensors["backbone.layers.0.mixer.in_proj.weight"][0, 0] == np.float32(-0.18193851)


def test_seed_changes_every_random_tensor():
    first, second = weights(SMALL), weights(replace(SMALL, seed=1))
    fixed = {"norm.weight", "norm_f.weight", "mixer.D"}
    for name, value in first.items():
        if not any(name.endswith(suffix) for suffix in fixed):
            assert not np.array_equal(value, second[name]), name


def test_decay_reaches_from_a_few_to_thousands_of_tokens():
    """A state that forgets at once, or never, would hide a wrong checkpoint."""
    tensors = weights(replace(SMALL, mamba_heads=64, mamba_head_dim=4))
    prefix = "backbone.layers.0.mixer"
    step = np.log1p(np.exp(tensors[f"{prefix}.dt_bias"].astype(np.float64)))
    tokens = 1 / (np.exp(tensors[f"{prefix}.A_log"]) * step)
    assert 3.9 < tokens.min() < 20
    assert 1000 < tokens.max() < 4001


def test_control_tokens_are_never_likely():
    head = weights(SMALL)["lm_head.weight"]
    assert not head[:TEKKEN_SPECIAL_TOKENS].any()
    assert head[TEKKEN_SPECIAL_TOKENS:].std() > 0.1


@pytest.mark.parametrize("vocab", [1256, 4096, 131_072])
def test_tokenizer_round_trips(tmp_path, vocab):
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    from marconi_ext.models.tekken import write_tekken

    write_tekken(tmp_path / "tekken.json", vocab)
    tokenizer = Tekkenizer.from_file(tmp_path / "tekken.json")
    text = "Grüße, 你好 — the quick brown fox\n\tjumps 12345 times 🦊"
    ids = tokenizer.encode(text, bos=True, eos=False)
    assert tokenizer.n_words == vocab
    assert max(ids) < vocab
    assert ids[0] == 1 and min(ids[1:]) >= TEKKEN_SPECIAL_TOKENS
    assert tokenizer.decode(ids) == text


def test_config_says_what_the_weights_are(tmp_path):
    model = ToyModel(hidden=32, pattern="M-*M", vocab=1300, chunk_size=256, n_groups=4)
    config = json.loads((write_model(tmp_path / "m", model) / "config.json").read_text())
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    inner = config["mamba_num_heads"] * config["mamba_head_dim"]
    conv = inner + 2 * config["n_groups"] * config["ssm_state_size"]
    assert tensors["backbone.layers.0.mixer.in_proj.weight"].shape == (inner + conv + 8, 32)
    assert tensors["backbone.layers.0.mixer.conv1d.weight"].shape == (conv, 1, config["conv_kernel"])
    assert tensors["backbone.layers.1.mixer.up_proj.weight"].shape == (config["intermediate_size"], 32)
    assert tensors["lm_head.weight"].shape == (config["vocab_size"], 32)
    assert config["chunk_size"] == 256


def test_writing_again_is_free_and_never_replaces_another_model(tmp_path):
    path = write_model(tmp_path / "m", SMALL)
    before = (path / "model.safetensors").stat().st_mtime_ns
    write_model(path, SMALL)
    assert (path / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="--force"):
        write_model(path, replace(SMALL, seed=3))
    write_model(path, replace(SMALL, seed=3), force=True)
    assert json.loads((path / "config.json").read_text())["marconi_toy_seed"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 0}, "hidden"),
        ({"pattern": "MMM"}, "attention"),
        ({"pattern": "M*E"}, "pattern"),
        ({"kv_heads": 3}, "kv_heads"),
        ({"n_groups": 3}, "n_groups"),
        ({"chunk_size": 96}, "power of two"),
        ({"vocab": 1000}, "vocab"),
        ({"vocab": 200_000}, "vocab"),
        ({"seed": -1}, "seed"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ToyModel(**change)
