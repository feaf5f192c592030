"""A small Bailing/Ring 2.5: lightning attention, whose decays are fixed, and latent attention layers, dense."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .latent_attention import LatentAttention, gated_mlp
from .seeded import DRAFT_GAIN, Seeded, check_sizes


@dataclass(frozen=True)
class LightningModel:
    """Sizes; equal values give files that are equal to the bit. Every `interval`-th layer is latent attention.

    embedding_scale: of the embeddings, against what the layers add. Where it is large the next token depends mostly on
        the last, and the layer for multi-token prediction, which knows little else, guesses it.
    """

    hidden: int = 64
    layers: int = 4
    interval: int = 2
    attention: LatentAttention = field(default_factory=LatentAttention)
    head_dim: int = 16
    norm_groups: int = 2
    width: int = 128
    vocab: int = 4096
    context: int = 131_072
    embedding_scale: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_sizes(self)

    def config(self) -> dict:
        """The Hugging Face config. One expert, and every layer among the first dense ones: no experts at all."""
        return {
            "architectures": ["BailingMoeV2_5ForCausalLM"],
            "model_type": "bailing_hybrid",
            "torch_dtype": "float32",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.width,
            "num_hidden_layers": self.layers,
            "num_nextn_predict_layers": 1,
            "layer_group_size": self.interval,
            **self.attention.config(),
            "head_dim": self.head_dim,
            "group_norm_size": self.norm_groups,
            "use_qk_norm": True,
            "num_experts": 1,
            "num_experts_per_tok": 1,
            "num_shared_experts": 0,
            "first_k_dense_replace": self.layers,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.5,
            "tie_word_embeddings": False,
            "max_position_embeddings": self.context,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 11,
            "marconi_embedding_scale": self.embedding_scale,
            "marconi_toy_seed": self.seed,
        }

    def weights(self) -> dict[str, np.ndarray]:
        """All tensors, fp32, under the names of Bailing checkpoints."""
        seeded = Seeded(self.seed)

        def parts(layer: int, prefix: str) -> dict[str, np.ndarray]:
            if (layer + 1) % self.interval == 0:
                mixer = self.attention.weights(seeded, f"{prefix}.attention", self.hidden, "dense")
            else:
                mixer = self._lightning(seeded, f"{prefix}.attention")
            return mixer | gated_mlp(seeded, f"{prefix}.mlp", self.hidden, self.width)

        tensors = seeded.decoder(self.vocab, self.hidden, self.layers, parts)
        embeddings = tensors.pop("model.embed_tokens.weight") * self.embedding_scale
        return tensors | {"model.word_embeddings.weight": embeddings} | self._draft(seeded)

    def _draft(self, seeded: Seeded) -> dict[str, np.ndarray]:
        """The layer that drafts the token after next, from a token's embedding and the state before it (MTP)."""
        layer = f"model.layers.{self.layers}"
        tensors = self.attention.weights(seeded, f"{layer}.attention", self.hidden, "dense")
        tensors |= gated_mlp(seeded, f"{layer}.mlp", self.hidden, self.width)
        for name in ("attention.dense", "mlp.down_proj"):
            tensors[f"{layer}.{name}.weight"] *= DRAFT_GAIN
        for norm in ("enorm", "hnorm", "input_layernorm", "post_attention_layernorm", "final_layernorm"):
            tensors[f"{layer}.{norm}.weight"] = np.ones(self.hidden, np.float32)
        return tensors | {f"{layer}.eh_proj.weight": seeded.draft_input(f"{layer}.eh_proj", self.hidden)}

    def _lightning(self, seeded: Seeded, prefix: str) -> dict[str, np.ndarray]:
        inner = self.attention.heads * self.head_dim
        return {
            **seeded.linear(f"{prefix}.query_key_value", 3 * inner, self.hidden),
            f"{prefix}.query_layernorm.weight": np.ones(self.head_dim, np.float32),
            f"{prefix}.key_layernorm.weight": np.ones(self.head_dim, np.float32),
            **seeded.linear(f"{prefix}.g_proj", inner, self.hidden),
            f"{prefix}.g_norm.weight": np.ones(inner, np.float32),
            **seeded.linear(f"{prefix}.dense", self.hidden, inner, 2.0),
        }
