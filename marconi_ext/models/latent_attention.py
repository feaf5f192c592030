"""Multi-head latent attention and a dense MLP, as the small Kimi Linear and Bailing models have them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .seeded import Seeded


@dataclass(frozen=True)
class LatentAttention:
    """Widths of a head's parts and of the latent that the cache keeps."""

    heads: int = 4
    latent: int = 32
    nope: int = 16
    rope: int = 8
    value: int = 16

    def config(self) -> dict:
        """The config's keys for it."""
        return {
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "q_lora_rank": None,
            "kv_lora_rank": self.latent,
            "qk_nope_head_dim": self.nope,
            "qk_rope_head_dim": self.rope,
            "v_head_dim": self.value,
        }

    def weights(self, seeded: Seeded, prefix: str, hidden: int, output: str) -> dict[str, np.ndarray]:
        """prefix: of the attention's tensors; output: the name of its last projection."""
        return {
            **seeded.linear(f"{prefix}.q_proj", self.heads * (self.nope + self.rope), hidden, 2.0),
            **seeded.linear(f"{prefix}.kv_a_proj_with_mqa", self.latent + self.rope, hidden),
            f"{prefix}.kv_a_layernorm.weight": np.ones(self.latent, np.float32),
            **seeded.linear(f"{prefix}.kv_b_proj", self.heads * (self.nope + self.value), self.latent),
            **seeded.linear(f"{prefix}.{output}", hidden, self.heads * self.value, 2.0),
        }


def gated_mlp(seeded: Seeded, prefix: str, hidden: int, width: int) -> dict[str, np.ndarray]:
    """gate_proj, up_proj and down_proj."""
    tensors: dict[str, np.ndarray] = {}
    for name in ("gate_proj", "up_proj"):
        tensors |= seeded.linear(f"{prefix}.{name}", width, hidden)
    return tensors | seeded.linear(f"{prefix}.down_proj", hidden, width, 0.5)
