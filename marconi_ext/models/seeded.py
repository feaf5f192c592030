"""What the small models share: seeded tensors, and the files of a model's folder."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from marconi_ext.models.tekken import MIN_VOCAB, TEKKEN_FULL_VOCAB, TEKKEN_SPECIAL_TOKENS, write_tekken

LOGIT_STD = 4.0  # spread of the next-token logits: peaked enough to differ, flat enough to stay sensitive

DRAFT_GAIN = (
    0.25  # of what a draft's layer adds to the embedding: it guesses what that alone says of the next token
)


def check_sizes(model: Any) -> None:
    """Raises: ValueError that begins with the name of a size that can't be."""
    sizes = {name: value for name, value in vars(model).items() if isinstance(value, int)}
    for name, value in sizes.items():
        if value < (0 if name == "seed" else 1):
            raise ValueError(f"{name} must be at least {int(name != 'seed')}, got {value}")
    if "kv_heads" in sizes and sizes["heads"] % sizes["kv_heads"]:
        raise ValueError(f"heads ({sizes['heads']}) must be a multiple of kv_heads ({sizes['kv_heads']})")
    if not MIN_VOCAB <= sizes["vocab"] <= TEKKEN_FULL_VOCAB:
        raise ValueError(f"vocab must lie between {MIN_VOCAB} and {TEKKEN_FULL_VOCAB}, got {sizes['vocab']}")


class Seeded:
    """Tensors by name: equal seeds give equal bits, and no tensor depends on another."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def rng(self, name: str) -> np.random.RandomState:
        """A stream of its own. RandomState's streams are frozen for good."""
        return np.random.RandomState([self._seed, zlib.crc32(name.encode())])

    def normal(self, name: str, *shape: int, std: float) -> np.ndarray:
        return (self.rng(name).standard_normal(shape) * std).astype(np.float32)

    def linear(self, name: str, rows: int, columns: int, gain: float = 1.0) -> dict[str, np.ndarray]:
        """A projection; gain 1 keeps the variance of its input."""
        return {f"{name}.weight": self.normal(f"{name}.weight", rows, columns, std=gain * columns**-0.5)}

    def embeddings(self, vocab: int, hidden: int, prefix: str = "model") -> dict[str, np.ndarray]:
        """Embeddings and the output head."""
        embed = self.normal("embeddings", vocab, hidden, std=1.0)
        return {f"{prefix}.embed_tokens.weight": embed, "lm_head.weight": self.head(vocab, hidden)}

    def decoder(
        self,
        vocab: int,
        hidden: int,
        layers: int,
        parts: Callable[[int, str], dict[str, np.ndarray]],
        *,
        norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm"),
        last_norm: str = "norm",
        norm_weight: float = 1.0,
    ) -> dict[str, np.ndarray]:
        """Embeddings, head, norms, and what `parts(layer, its prefix)` adds to each layer."""
        tensors = self.embeddings(vocab, hidden)
        ones = np.full(hidden, norm_weight, np.float32)
        tensors[f"model.{last_norm}.weight"] = ones
        for layer in range(layers):
            prefix = f"model.layers.{layer}"
            tensors |= {f"{prefix}.{norm}.weight": ones.copy() for norm in norms}
            tensors |= parts(layer, prefix)
        return tensors

    def head(self, vocab: int, hidden: int) -> np.ndarray:
        """The output head [vocab, hidden]: control tokens have logit 0, so greedy decoding never emits one."""
        head = self.normal("lm_head", vocab, hidden, std=LOGIT_STD * hidden**-0.5)
        head[:TEKKEN_SPECIAL_TOKENS] = 0.0
        return head

    def draft_input(self, name: str, hidden: int) -> np.ndarray:
        """What a draft's layer reads [hidden, 2 · hidden]: the token's embedding, and a little of the state before."""
        state = self.normal(f"{name}.weight", hidden, hidden, std=0.1 * hidden**-0.5)
        return np.concatenate([np.eye(hidden, dtype=np.float32), state], axis=1)

    def conv(self, name: str, channels: int, taps: int) -> np.ndarray:
        """A depthwise kernel [channels, 1, taps]."""
        return self.normal(name, channels, 1, taps, std=1.5 * taps**-0.5)

    def decays(
        self, prefix: str, heads: int, shortest: float = 100.0, longest: float = 4000.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """(A_log, dt_bias), fp32[heads]: time constants 1 / (A · dt) run from `shortest` to `longest` tokens. Were
        states to fade at once, no wrong one would show."""
        # Softplus of dt_bias is the step size, spread evenly in the logarithm like Mamba2's own initialisation.
        dt = np.exp(self.rng(f"{prefix}.dt_bias").uniform(np.log(0.01), np.log(0.2), heads))
        tokens = np.exp(self.rng(f"{prefix}.A_log").uniform(np.log(shortest), np.log(longest), heads))
        a_log = np.log(1.0 / (tokens * dt)).astype(np.float32)
        return a_log, (dt + np.log(-np.expm1(-dt))).astype(np.float32)  # inverse softplus


def write_folder(
    path: str | Path,
    config: dict,
    weights: Callable[[], dict[str, np.ndarray]],
    *,
    force: bool = False,
) -> Path:
    """Write config.json, model.safetensors and tekken.json into the folder `path` and return it.

    Raises: FileExistsError if the folder holds another model and `force` is false. A folder with the same config is
    left as it is, so callers may ask again at no cost.
    """
    path = Path(path)
    text = json.dumps(config, indent=2) + "\n"
    present = path / "config.json"
    if present.exists() and not force:
        if present.read_text() == text:
            return path
        raise FileExistsError(f"{path} holds a model of other sizes; pass --force to replace it")
    path.mkdir(parents=True, exist_ok=True)
    present.unlink(missing_ok=True)  # it marks a model as complete, so it appears last
    save_file(weights(), path / "model.safetensors", metadata={"format": "pt"})
    write_tekken(path / "tekken.json", config["vocab_size"])
    (path / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}) + "\n")
    present.write_text(text)
    return path
