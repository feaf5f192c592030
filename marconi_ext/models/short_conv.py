"""A small LFM2 or LFM2-MoE: gated short convolutions and attention. A layer's whole state is its last inputs.

Such a state forgets at once, so the kernel is longer than LFM2's three taps: a window that is one token off must show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .seeded import Seeded, check_sizes

CONV, ATTENTION = "conv", "full_attention"


@dataclass(frozen=True)
class ShortConvModel:
    """Sizes; equal values give files that are equal to the bit. Every `interval`-th layer is attention.

    embedding_scale: of the embeddings, against what the layers add. Where it is large the next token depends mostly on
        the last, and drafts are often right.
    """

    hidden: int = 64
    layers: int = 4
    interval: int = 2
    heads: int = 4
    kv_heads: int = 2
    conv_kernel: int = 4
    width: int = 128
    vocab: int = 4096
    context: int = 131_072
    embedding_scale: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_sizes(self)

    @property
    def layer_types(self) -> list[str]:
        return [ATTENTION if (i + 1) % self.interval == 0 else CONV for i in range(self.layers)]

    def config(self) -> dict[str, Any]:
        """The Hugging Face config."""
        return {
            "architectures": ["Lfm2ForCausalLM"],
            "model_type": "lfm2",
            "torch_dtype": "float32",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.width,
            "block_auto_adjust_ff_dim": False,
            "num_hidden_layers": self.layers,
            "layer_types": self.layer_types,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "conv_L_cache": self.conv_kernel,
            "conv_bias": False,
            "norm_eps": 1e-5,
            "rope_theta": 10_000.0,
            "tie_word_embeddings": False,
            "max_position_embeddings": self.context,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "marconi_embedding_scale": self.embedding_scale,
            "marconi_toy_seed": self.seed,
        }

    def weights(self) -> dict[str, np.ndarray]:
        """All tensors, fp32, under the names of LFM2 checkpoints."""
        seeded = Seeded(self.seed)

        def parts(layer: int, prefix: str) -> dict[str, np.ndarray]:
            mixer = self._conv if self.layer_types[layer] == CONV else self._attention
            return mixer(seeded, prefix) | self._feed_forward(seeded, layer, f"{prefix}.feed_forward")

        tensors = seeded.decoder(
            self.vocab,
            self.hidden,
            len(self.layer_types),
            parts,
            norms=("operator_norm", "ffn_norm"),
            last_norm="embedding_norm",
        )
        tensors["model.embed_tokens.weight"] *= self.embedding_scale
        return tensors

    def _feed_forward(self, seeded: Seeded, _layer: int, prefix: str) -> dict[str, np.ndarray]:
        return self._mlp(seeded, prefix)

    def _mlp(self, seeded: Seeded, prefix: str) -> dict[str, np.ndarray]:
        tensors = seeded.linear(f"{prefix}.w2", self.hidden, self.width, 0.5)
        for name in ("w1", "w3"):
            tensors |= seeded.linear(f"{prefix}.{name}", self.width, self.hidden)
        return tensors

    def _conv(self, seeded: Seeded, layer: str) -> dict[str, np.ndarray]:
        prefix = f"{layer}.conv"
        return {
            **seeded.linear(f"{prefix}.in_proj", 3 * self.hidden, self.hidden),
            f"{prefix}.conv.weight": seeded.conv(f"{prefix}.conv", self.hidden, self.conv_kernel),
            **seeded.linear(f"{prefix}.out_proj", self.hidden, self.hidden),
        }

    def _attention(self, seeded: Seeded, layer: str) -> dict[str, np.ndarray]:
        prefix, head_dim = f"{layer}.self_attn", self.hidden // self.heads
        keys = self.kv_heads * head_dim
        return {
            **seeded.linear(f"{prefix}.q_proj", self.hidden, self.hidden),
            **seeded.linear(f"{prefix}.k_proj", keys, self.hidden),
            **seeded.linear(f"{prefix}.v_proj", keys, self.hidden, 2.0),
            **seeded.linear(f"{prefix}.out_proj", self.hidden, self.hidden, 2.0),
            # Sharper than a plain average over the context.
            f"{prefix}.q_layernorm.weight": np.full(head_dim, 2.0, np.float32),
            f"{prefix}.k_layernorm.weight": np.ones(head_dim, np.float32),
        }


@dataclass(frozen=True)
class ShortConvExpertsModel(ShortConvModel):
    """LFM2-MoE: all layers but the first have experts, all of which take part.

    Were the router to choose, a rounding could send a token to another expert and hide what a test looks for.
    """

    experts: int = 4

    def config(self) -> dict[str, Any]:
        return super().config() | {
            "architectures": ["Lfm2MoeForCausalLM"],
            "model_type": "lfm2_moe",
            "moe_intermediate_size": self.width,
            "num_dense_layers": 1,
            "num_experts": self.experts,
            "num_experts_per_tok": self.experts,
            "use_expert_bias": False,
            "norm_topk_prob": True,
        }

    def _feed_forward(self, seeded: Seeded, layer: int, prefix: str) -> dict[str, np.ndarray]:
        if layer == 0:
            return self._mlp(seeded, prefix)
        tensors = seeded.linear(f"{prefix}.gate", self.experts, self.hidden)
        for expert in range(self.experts):
            tensors |= self._mlp(seeded, f"{prefix}.experts.{expert}")
        return tensors
