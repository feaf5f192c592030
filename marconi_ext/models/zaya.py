"""A small Zaya: attention whose queries and keys pass a short convolution, and layers of experts between.

An attention layer has two windows: what the convolution has read last, and the last hidden state. They forget at once,
so the convolution is longer than Zaya's: a window that is one token off must show. All experts take part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .seeded import Seeded, check_sizes


@dataclass(frozen=True)
class ZayaModel:
    """Sizes; equal values give files that are equal to the bit. Layers are attention and experts by turns.

    taps: of each of the two convolutions in a row
    """

    hidden: int = 64
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    taps: int = 3
    experts: int = 2
    router_width: int = 16
    width: int = 64
    vocab: int = 4096
    context: int = 131_072
    seed: int = 0

    def __post_init__(self) -> None:
        check_sizes(self)

    def config(self) -> dict[str, Any]:
        """The Hugging Face config."""
        return {
            "architectures": ["ZayaForCausalLM"],
            "model_type": "zaya",
            "torch_dtype": "float32",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_query_groups": self.kv_heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "cca_time0": self.taps,
            "cca_time1": self.taps,
            "num_experts": self.experts,
            "moe_router_topk": self.experts,
            "ffn_hidden_size": 2 * self.width,
            "zaya_mlp_expansion": self.router_width,
            "zaya_use_mod": False,
            "zaya_use_eda": False,
            "scale_residual_merge": False,
            "tie_word_embeddings": False,
            "rope_theta": 10_000.0,
            "max_position_embeddings": self.context,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "marconi_toy_seed": self.seed,
        }

    def weights(self) -> dict[str, np.ndarray]:
        """All tensors, fp32, under the names of Zaya checkpoints."""
        seeded = Seeded(self.seed)

        def parts(layer: int, prefix: str) -> dict[str, np.ndarray]:
            return (self._experts if layer % 2 else self._attention)(seeded, prefix)

        return seeded.decoder(
            self.vocab, self.hidden, self.layers, parts, norms=("input_norm",), last_norm="final_norm"
        )

    def _attention(self, seeded: Seeded, layer: str) -> dict[str, np.ndarray]:
        prefix = f"{layer}.self_attn"
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        channels, cca = queries + keys, f"{prefix}.qkv"
        mixed = (channels, self.head_dim, self.taps)  # the second convolution mixes the channels of a head
        std = 1.5 * (self.head_dim * self.taps) ** -0.5
        return {
            **seeded.linear(f"{cca}.linear_q", queries, self.hidden),
            **seeded.linear(f"{cca}.linear_k", keys, self.hidden),
            **seeded.linear(f"{cca}.val_proj1", keys // 2, self.hidden, 2.0),
            **seeded.linear(f"{cca}.val_proj2", keys // 2, self.hidden, 2.0),
            f"{cca}.conv_qk.0.weight": seeded.conv(f"{cca}.conv_qk.0", channels, self.taps),
            f"{cca}.conv_qk.1.weight": seeded.normal(f"{cca}.conv_qk.1", *mixed, std=std),
            **{f"{cca}.conv_qk.{i}.bias": np.zeros(channels, np.float32) for i in (0, 1)},
            f"{cca}.temp": np.ones(self.kv_heads, np.float32),
            **seeded.linear(f"{prefix}.o_proj", self.hidden, queries, 2.0),
        }

    def _experts(self, seeded: Seeded, layer: str) -> dict[str, np.ndarray]:
        prefix, inner = f"{layer}.zaya_block", self.router_width
        router = f"{prefix}.router"
        tensors = {f"{router}.rmsnorm_eda.weight": np.ones(inner, np.float32)}
        for name, columns in (("down_proj", self.hidden), ("router_mlp.0", inner), ("router_mlp.2", inner)):
            tensors |= seeded.linear(f"{router}.{name}", inner, columns)
            tensors[f"{router}.{name}.bias"] = np.zeros(inner, np.float32)
        tensors |= seeded.linear(f"{router}.router_mlp.4", self.experts, inner)
        tensors[f"{router}.balancing_biases"] = np.zeros(self.experts, np.float32)
        for i in range(self.experts):
            expert = f"{prefix}.experts.local_experts.{i}"
            tensors |= seeded.linear(f"{expert}.linear_fc1", 2 * self.width, self.hidden)
            tensors |= seeded.linear(f"{expert}.linear_fc2", self.hidden, self.width, 0.5)
        return tensors
