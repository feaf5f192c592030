"""A small Kimi Linear: Kimi Delta Attention and latent attention layers, dense."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .latent_attention import LatentAttention, gated_mlp
from .seeded import Seeded, check_sizes


@dataclass(frozen=True)
class KdaModel:
    """Sizes; equal values give files that are equal to the bit. Every `interval`-th layer is latent attention.

    embedding_scale: of the embeddings, against what the layers add. Where it is large the next token depends mostly on
        the last, and drafts are often right.
    """

    hidden: int = 64
    layers: int = 4
    interval: int = 2
    attention: LatentAttention = field(default_factory=LatentAttention)
    heads: int = 4
    head_dim: int = 16
    conv_kernel: int = 4
    width: int = 128
    vocab: int = 4096
    context: int = 131_072
    embedding_scale: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_sizes(self)

    def config(self) -> dict:
        """The Hugging Face config; it counts layers from one."""
        numbers = range(1, self.layers + 1)
        return {
            "architectures": ["KimiLinearForCausalLM"],
            "model_type": "kimi_linear",
            "torch_dtype": "float32",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.width,
            "num_hidden_layers": self.layers,
            **self.attention.config(),
            "mla_use_nope": True,
            "linear_attn_config": {
                "kda_layers": [n for n in numbers if n % self.interval],
                "full_attn_layers": [n for n in numbers if n % self.interval == 0],
                "num_heads": self.heads,
                "head_dim": self.head_dim,
                "short_conv_kernel_size": self.conv_kernel,
            },
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10_000.0,
            "tie_word_embeddings": False,
            "max_position_embeddings": self.context,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "marconi_embedding_scale": self.embedding_scale,
            "marconi_toy_seed": self.seed,
        }

    def weights(self) -> dict[str, np.ndarray]:
        """All tensors, fp32, under the names of Kimi Linear checkpoints."""
        seeded = Seeded(self.seed)

        def parts(layer: int, prefix: str) -> dict[str, np.ndarray]:
            if (layer + 1) % self.interval == 0:
                mixer = self.attention.weights(seeded, f"{prefix}.self_attn", self.hidden, "o_proj")
            else:
                mixer = self._delta_attention(seeded, f"{prefix}.self_attn")
            return mixer | gated_mlp(seeded, f"{prefix}.mlp", self.hidden, self.width)

        tensors = seeded.decoder(self.vocab, self.hidden, self.layers, parts)
        tensors["model.embed_tokens.weight"] *= self.embedding_scale
        return tensors

    def _delta_attention(self, seeded: Seeded, prefix: str) -> dict[str, np.ndarray]:
        inner = self.heads * self.head_dim
        a_log, dt_bias = seeded.decays(prefix, self.heads)
        tensors = {
            f"{prefix}.A_log": a_log.reshape(1, 1, -1, 1),
            f"{prefix}.dt_bias": np.repeat(dt_bias, self.head_dim),
            f"{prefix}.o_norm.weight": np.ones(self.head_dim, np.float32),
            **seeded.linear(f"{prefix}.b_proj", self.heads, self.hidden, 0.5),
            **seeded.linear(f"{prefix}.o_proj", self.hidden, inner, 2.0),
        }
        for name in ("q", "k", "v"):
            tensors |= seeded.linear(f"{prefix}.{name}_proj", inner, self.hidden)
            conv = f"{prefix}.{name}_conv1d"
            tensors[f"{conv}.weight"] = seeded.conv(conv, inner, self.conv_kernel)
        for name in ("f", "g"):  # forget gate and output gate, through a narrow middle
            tensors |= seeded.linear(f"{prefix}.{name}_a_proj", self.head_dim, self.hidden)
            tensors |= seeded.linear(f"{prefix}.{name}_b_proj", inner, self.head_dim, 0.5)
        return tensors
