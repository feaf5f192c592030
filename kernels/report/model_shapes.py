"""Layer shapes of real hybrid models, for the ahead-of-time report and its estimates.

Each shape names the Hugging Face repository whose config.json its widths come from; parameter counts are those of
the model cards. A conv window is the config's kernel width minus one; KV width counts keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """One model, without tensor parallelism. Widths are in elements, `chunk_size` in tokens.

    kind: "mamba2" (state [nheads, headdim, dstate]) or "gdn" (state [value heads, value dim, key dim])
    ngroups: heads that share B and C (Mamba2), or key heads (GDN)
    """

    name: str
    kind: str
    recurrent_layers: int
    nheads: int
    headdim: int
    dstate: int
    ngroups: int
    chunk_size: int
    conv_dim: int
    conv_window: int
    attention_layers: int
    attention_width: int  # query heads · head dim
    kv_width: int  # 2 · KV heads · head dim
    active_params: float
    total_params: float

    @property
    def state_elements(self) -> int:
        return self.nheads * self.headdim * self.dstate


# nvidia/Nemotron-H-8B-Base-8K: 52 layers, 24 M and 4 * in hybrid_override_pattern.
NEMOTRON_H_8B = ModelShape(
    name="Nemotron-H-8B",
    kind="mamba2",
    recurrent_layers=24,
    nheads=128,
    headdim=64,
    dstate=128,
    ngroups=8,
    chunk_size=128,
    conv_dim=128 * 64 + 2 * 8 * 128,
    conv_window=3,
    attention_layers=4,
    attention_width=32 * 128,
    kv_width=2 * 8 * 128,
    active_params=8.1e9,
    total_params=8.1e9,
)
# tiiuae/Falcon-H1-7B-Base: all 44 layers hold both mixers side by side. The chunk is the configuration class's
# default; copies of the config in other projects say 128 too, which would make every checkpoint cheaper.
FALCON_H1_7B = ModelShape(
    name="Falcon-H1-7B",
    kind="mamba2",
    recurrent_layers=44,
    nheads=24,
    headdim=128,
    dstate=256,
    ngroups=1,
    chunk_size=256,
    conv_dim=24 * 128 + 2 * 1 * 256,
    conv_window=3,
    attention_layers=44,
    attention_width=12 * 128,
    kv_width=2 * 2 * 128,
    active_params=7.6e9,
    total_params=7.6e9,
)
# ibm-granite/granite-4.0-h-small: 40 layers, 36 "mamba" and 4 "attention" in layer_types.
GRANITE_4_H_SMALL = ModelShape(
    name="Granite-4.0-H-Small",
    kind="mamba2",
    recurrent_layers=36,
    nheads=128,
    headdim=64,
    dstate=128,
    ngroups=1,
    chunk_size=256,
    conv_dim=128 * 64 + 2 * 1 * 128,
    conv_window=3,
    attention_layers=4,
    attention_width=32 * 128,
    kv_width=2 * 8 * 128,
    active_params=9e9,
    total_params=32e9,
)
# Qwen/Qwen3-Next-80B-A3B-Instruct: 48 layers, full_attention_interval 4. The chunk is the GDN kernels' own.
QWEN3_NEXT_80B = ModelShape(
    name="Qwen3-Next-80B-A3B",
    kind="gdn",
    recurrent_layers=36,
    nheads=32,
    headdim=128,
    dstate=128,
    ngroups=16,
    chunk_size=64,
    conv_dim=32 * 128 + 2 * 16 * 128,
    conv_window=3,
    attention_layers=12,
    attention_width=16 * 256,
    kv_width=2 * 2 * 256,
    active_params=3e9,
    total_params=80e9,
)
MODELS = (NEMOTRON_H_8B, FALCON_H1_7B, GRANITE_4_H_SMALL, QWEN3_NEXT_80B)
