"""Write a small hybrid model (NemotronH layout) with seeded weights and a real tokenizer.

Servers, tests and demos need a model that costs nothing to download, is the same to the bit everywhere and
whose outputs depend on everything it has read: a wrong SSM state, convolution window or KV row must move the
logprobs. So the weights have normal size, the SSM heads remember from a few tokens up to a few thousand,
and greedy decoding wanders instead of repeating one token.

Needs numpy, safetensors and mistral-common's data files; never torch.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from marconi_ext.models.seeded import DRAFT_GAIN, Seeded, write_folder
from marconi_ext.models.tekken import MIN_VOCAB, TEKKEN_FULL_VOCAB

MAMBA, ATTENTION, MLP = "M", "*", "-"


@dataclass(frozen=True)
class ToyModel:
    """Sizes of the model; equal values give files that are equal to the bit.

    `pattern` lists the layers: M Mamba2, * attention, - MLP. `mlp` is the MLP's width; 0 means 2 · hidden.
    `embedding_scale` is that of the embeddings, against what the layers add: where it is large the next token depends
    mostly on the last, and the layer for multi-token prediction (MTP), which knows little else, guesses it.
    """

    hidden: int = 64
    pattern: str = "M*M-"
    heads: int = 4  # attention query heads
    kv_heads: int = 2
    head_dim: int = 16
    mamba_heads: int = 8
    mamba_head_dim: int = 16
    n_groups: int = 2
    state_size: int = 16
    conv_kernel: int = 4
    chunk_size: int = 64
    mlp: int = 0
    vocab: int = 4096
    context: int = 131_072
    embedding_scale: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = {k: v for k, v in asdict(self).items() if k not in ("pattern", "mlp", "seed")}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.seed < 0 or self.mlp < 0:
            raise ValueError(f"seed and mlp must not be negative, got seed={self.seed}, mlp={self.mlp}")
        if not self.pattern or set(self.pattern) - {MAMBA, ATTENTION, MLP}:
            raise ValueError(f"pattern takes the letters M, * and -, got {self.pattern!r}")
        if MAMBA not in self.pattern or ATTENTION not in self.pattern:
            raise ValueError(
                f"pattern needs at least one Mamba (M) and one attention (*) layer, got {self.pattern!r}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.mamba_heads % self.n_groups:
            raise ValueError(
                f"mamba_heads ({self.mamba_heads}) must be a multiple of n_groups ({self.n_groups})"
            )
        if self.chunk_size & (self.chunk_size - 1):
            raise ValueError(f"chunk_size must be a power of two, got {self.chunk_size}")
        if self.conv_kernel > self.chunk_size:
            raise ValueError(
                f"conv_kernel ({self.conv_kernel}) must not exceed chunk_size ({self.chunk_size})"
            )
        if not MIN_VOCAB <= self.vocab <= TEKKEN_FULL_VOCAB:
            raise ValueError(
                f"vocab must lie between {MIN_VOCAB} (Tekken's control tokens and bytes) and "
                f"{TEKKEN_FULL_VOCAB}, got {self.vocab}"
            )

    @property
    def inner(self) -> int:
        """Width of the Mamba mixer: heads · head_dim."""
        return self.mamba_heads * self.mamba_head_dim

    @property
    def conv_dim(self) -> int:
        """Channels of the causal convolution: x, B and C side by side."""
        return self.inner + 2 * self.n_groups * self.state_size

    @property
    def mlp_width(self) -> int:
        return self.mlp or 2 * self.hidden

    def config(self) -> dict[str, Any]:
        """The Hugging Face config."""
        return config_json(self)

    def weights(self) -> dict[str, np.ndarray]:
        """All tensors, fp32, under the names of NemotronH checkpoints."""
        return weights(self)


def write_model(path: str | Path, model: ToyModel | None = None, *, force: bool = False) -> Path:
    """Write config.json, model.safetensors and tekken.json into the folder `path` and return it.

    Raises: FileExistsError if the folder holds another model and `force` is false. A folder with the same
    sizes is left as it is, so callers may ask again at no cost.
    """
    model = model or ToyModel()
    return write_folder(path, config_json(model), lambda: weights(model), force=force)


def config_json(model: ToyModel) -> dict:
    """The Hugging Face config, under both the names that checkpoints use and those SGLang's class reads."""
    return {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "torch_dtype": "float32",
        "vocab_size": model.vocab,
        "hidden_size": model.hidden,
        "intermediate_size": model.mlp_width,
        "hybrid_override_pattern": model.pattern,
        "num_hidden_layers": len(model.pattern),
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "attention_head_dim": model.head_dim,
        "mamba_num_heads": model.mamba_heads,
        "mamba_head_dim": model.mamba_head_dim,
        "n_groups": model.n_groups,
        "mamba_n_groups": model.n_groups,
        "ssm_state_size": model.state_size,
        "conv_kernel": model.conv_kernel,
        "mamba_d_conv": model.conv_kernel,
        "chunk_size": model.chunk_size,
        "expand": 2,
        "use_conv_bias": True,
        "mamba_hidden_act": "silu",
        "mlp_hidden_act": "relu2",
        "use_bias": False,
        "mlp_bias": False,
        "attention_bias": False,
        "mamba_proj_bias": False,
        "layer_norm_epsilon": 1e-5,
        "residual_in_fp32": False,
        "tie_word_embeddings": False,
        "max_position_embeddings": model.context,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 11,
        "mtp_hybrid_override_pattern": ATTENTION,
        "marconi_embedding_scale": model.embedding_scale,
        "marconi_toy_seed": model.seed,
    }


def weights(model: ToyModel) -> dict[str, np.ndarray]:
    """All tensors, fp32, under the names of NemotronH checkpoints."""

    seeded, d = Seeded(model.seed), model.hidden
    embeddings = seeded.normal("embeddings", model.vocab, d, std=1.0)
    tensors = {"backbone.embeddings.weight": embeddings * model.embedding_scale}
    for layer, kind in enumerate(model.pattern):
        prefix = f"backbone.layers.{layer}"
        tensors[f"{prefix}.norm.weight"] = np.ones(d, np.float32)
        if kind == MAMBA:
            tensors |= _mamba_tensors(model, f"{prefix}.mixer", seeded)
        for name, (rows, columns, gain) in _linears(model, kind).items():
            tensors |= seeded.linear(f"{prefix}.mixer.{name}", rows, columns, gain)
    tensors["backbone.norm_f.weight"] = np.ones(d, np.float32)
    tensors["lm_head.weight"] = seeded.head(model.vocab, d)
    return tensors | _draft(model, seeded)


def _draft(model: ToyModel, seeded: Seeded) -> dict[str, np.ndarray]:
    """The attention layer that drafts the token after next, from a token's embedding and the state before it (MTP)."""
    layer, d = "mtp.layers.0", model.hidden
    tensors = {
        f"{layer}.{norm}.weight": np.ones(d, np.float32)
        for norm in ("enorm", "hnorm", "norm", "final_layernorm")
    }
    tensors[f"{layer}.eh_proj.weight"] = seeded.draft_input(f"{layer}.eh_proj", d)
    for name, (rows, columns, gain) in _linears(model, ATTENTION).items():
        least = DRAFT_GAIN if name == "o_proj" else 1.0
        tensors |= seeded.linear(f"{layer}.mixer.{name}", rows, columns, gain * least)
    return tensors


def _linears(model: ToyModel, kind: str) -> dict[str, tuple[int, int, float]]:
    """Rows, columns and gain of a layer's projections: gain 1 keeps the variance of its input."""
    d, queries, keys = model.hidden, model.heads * model.head_dim, model.kv_heads * model.head_dim
    if kind == MAMBA:
        return {
            "in_proj": (model.inner + model.conv_dim + model.mamba_heads, d, 1.0),
            "out_proj": (d, model.inner, 1.0),
        }
    if kind == ATTENTION:  # sharper than a plain average over the context
        return {
            "q_proj": (queries, d, 2.0),
            "k_proj": (keys, d, 1.0),
            "v_proj": (keys, d, 2.0),
            "o_proj": (d, queries, 2.0),
        }
    return {"up_proj": (model.mlp_width, d, 1.0), "down_proj": (d, model.mlp_width, 0.5)}


def _mamba_tensors(model: ToyModel, prefix: str, seeded: Seeded) -> dict[str, np.ndarray]:
    """Convolution and SSM parameters, whose memory goes from a few to a few thousand tokens."""
    heads, conv = model.mamba_heads, f"{prefix}.conv1d"
    kernel = seeded.rng(f"{conv}.weight").standard_normal((model.conv_dim, 1, model.conv_kernel))
    a_log, dt_bias = seeded.decays(prefix, heads, shortest=4.0)
    return {
        f"{conv}.weight": (kernel * model.conv_kernel**-0.5 * 1.5).astype(np.float32),
        f"{conv}.bias": seeded.normal(f"{conv}.bias", model.conv_dim, std=0.1),
        f"{prefix}.A_log": a_log,
        f"{prefix}.D": np.full(heads, 0.5, np.float32),
        f"{prefix}.dt_bias": dt_bias,
        f"{prefix}.norm.weight": np.ones(model.inner, np.float32),
    }
