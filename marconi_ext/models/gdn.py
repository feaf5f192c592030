"""A small Qwen3-Next: Gated DeltaNet and attention layers, with four experts that all take part.

Were the router to choose, a rounding could send a token to another expert and hide what a test looks for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .seeded import DRAFT_GAIN, Seeded, check_sizes


@dataclass(frozen=True)
class GdnModel:
    """Sizes; equal values give files that are equal to the bit. Every `interval`-th layer is attention.

    embedding_scale: of the embeddings, against what the layers add. Where it is large the next token depends mostly on
        the last, and the layer for multi-token prediction, which knows little else, guesses it.
    """

    hidden: int = 64
    layers: int = 4
    interval: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    key_heads: int = 2
    value_heads: int = 4
    key_dim: int = 16
    value_dim: int = 16
    conv_kernel: int = 4
    experts: int = 4
    expert_width: int = 32
    vocab: int = 4096
    context: int = 131_072
    embedding_scale: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_sizes(self)

    def config(self) -> dict:
        """The Hugging Face config."""
        return {
            "architectures": ["Qwen3NextForCausalLM"],
            "model_type": "qwen3_next",
            "torch_dtype": "float32",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": 2 * self.hidden,
            "num_hidden_layers": self.layers,
            "full_attention_interval": self.interval,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "linear_num_key_heads": self.key_heads,
            "linear_num_value_heads": self.value_heads,
            "linear_key_head_dim": self.key_dim,
            "linear_value_head_dim": self.value_dim,
            "linear_conv_kernel_dim": self.conv_kernel,
            "num_experts": self.experts,
            "num_experts_per_tok": self.experts,
            "moe_intermediate_size": self.expert_width,
            "shared_expert_intermediate_size": self.expert_width,
            "decoder_sparse_step": 1,
            "norm_topk_prob": True,
            "mlp_only_layers": [],
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": 10_000,
            "partial_rotary_factor": 0.25,
            "attention_bias": False,
            "tie_word_embeddings": False,
            "max_position_embeddings": self.context,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "marconi_embedding_scale": self.embedding_scale,
            "marconi_toy_seed": self.seed,
        }

    def weights(self) -> dict[str, np.ndarray]:
        """All tensors, fp32, under the names of Qwen3-Next checkpoints."""
        seeded = Seeded(self.seed)

        def parts(layer: int, prefix: str) -> dict[str, np.ndarray]:
            attends = (layer + 1) % self.interval == 0
            mixer = (self._attention if attends else self._linear_attention)(seeded, prefix)
            return mixer | self._experts(seeded, f"{prefix}.mlp")

        # Gemma's norm adds one
        tensors = seeded.decoder(self.vocab, self.hidden, self.layers, parts, norm_weight=0.0)
        tensors["model.embed_tokens.weight"] *= self.embedding_scale
        return tensors | self._draft(seeded)

    def _draft(self, seeded: Seeded) -> dict[str, np.ndarray]:
        """The layer that drafts the token after next, from a token's embedding and the state before it (MTP)."""
        layer = "mtp.layers.0"
        tensors = self._attention(seeded, layer) | self._experts(seeded, f"{layer}.mlp")
        for name in ("self_attn.o_proj", "mlp.shared_expert.down_proj"):
            tensors[f"{layer}.{name}.weight"] *= DRAFT_GAIN
        norms = [
            *("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"),
            *("layers.0.input_layernorm", "layers.0.post_attention_layernorm"),
        ]
        tensors |= {f"mtp.{norm}.weight": np.zeros(self.hidden, np.float32) for norm in norms}
        return tensors | {"mtp.fc.weight": seeded.draft_input("mtp.fc", self.hidden)}

    def _linear_attention(self, seeded: Seeded, layer: str) -> dict[str, np.ndarray]:
        prefix = f"{layer}.linear_attn"
        keys, values = self.key_heads * self.key_dim, self.value_heads * self.value_dim
        a_log, dt_bias = seeded.decays(prefix, self.value_heads)
        return {
            **seeded.linear(f"{prefix}.in_proj_qkvz", 2 * keys + 2 * values, self.hidden),
            **seeded.linear(f"{prefix}.in_proj_ba", 2 * self.value_heads, self.hidden, 0.5),
            f"{prefix}.conv1d.weight": seeded.conv(f"{prefix}.conv1d", 2 * keys + values, self.conv_kernel),
            f"{prefix}.A_log": a_log,
            f"{prefix}.dt_bias": dt_bias,
            f"{prefix}.norm.weight": np.ones(self.value_dim, np.float32),
            **seeded.linear(f"{prefix}.out_proj", self.hidden, values, 2.0),
        }

    def _attention(self, seeded: Seeded, layer: str) -> dict[str, np.ndarray]:
        prefix = f"{layer}.self_attn"
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            **seeded.linear(f"{prefix}.q_proj", 2 * queries, self.hidden),  # with the output's gate
            **seeded.linear(f"{prefix}.k_proj", keys, self.hidden),
            **seeded.linear(f"{prefix}.v_proj", keys, self.hidden, 2.0),
            **seeded.linear(f"{prefix}.o_proj", self.hidden, queries, 2.0),
            f"{prefix}.q_norm.weight": np.ones(
                self.head_dim, np.float32
            ),  # 1 + 1: sharper than a plain average
            f"{prefix}.k_norm.weight": np.zeros(self.head_dim, np.float32),
        }

    def _experts(self, seeded: Seeded, prefix: str) -> dict[str, np.ndarray]:
        tensors = seeded.linear(f"{prefix}.gate", self.experts, self.hidden)
        tensors |= seeded.linear(f"{prefix}.shared_expert_gate", 1, self.hidden)
        for mlp in [f"experts.{i}" for i in range(self.experts)] + ["shared_expert"]:
            for name in ("gate_proj", "up_proj"):
                tensors |= seeded.linear(f"{prefix}.{mlp}.{name}", self.expert_width, self.hidden)
            tensors |= seeded.linear(f"{prefix}.{mlp}.down_proj", self.hidden, self.expert_width, 0.5)
        return tensors
