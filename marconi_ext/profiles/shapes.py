"""Layer shapes of the models that `marconi kernels report` reckons with, from their configs."""

from __future__ import annotations

from dataclasses import dataclass

from marconi_ext.profiles.architectures import attention_sizes, gdn_sizes, mamba2_sizes
from marconi_ext.profiles.model import load_config, profile_from_config

GDN_CHUNK_TOKENS = 64  # of its kernels


@dataclass(frozen=True)
class ModelShape:
    """One model, without tensor parallelism. Widths are in elements, `chunk_size` in tokens.

    kind: "mamba2" (state [nheads, headdim, dstate]) or "gdn" (state [value heads, value dim, key dim])
    ngroups: heads that share B and C (Mamba2), or key heads (GDN)
    attention_width: of all query heads; kv_width: of keys and values
    active_params, total_params: of the model card
    """

    name: str
    kind: str
    recurrent_layers: int
    nheads: int
    headdim: int
    dstate: int
    ngroups: int
    chunk_size: int
    conv_window: int
    attention_layers: int
    attention_width: int
    kv_width: int
    active_params: float
    total_params: float

    @property
    def state_elements(self) -> int:
        return self.nheads * self.headdim * self.dstate

    @property
    def conv_dim(self) -> int:
        return self.nheads * self.headdim + 2 * self.ngroups * self.dstate


def shape_of(
    profile: str, name: str, *, active_params: float, total_params: float, chunk_tokens: int = 0
) -> ModelShape:
    """The shape of a named profile. chunk_tokens: of Mamba2's scan, where the config leaves it to its class."""
    config, _ = load_config(profile)
    layers = profile_from_config(config).layers
    heads, kv_heads, head_dim = attention_sizes(config)
    if "gdn" in layers:
        kind, chunk = "gdn", GDN_CHUNK_TOKENS
        groups, recurrent_heads, state, width, kernel = gdn_sizes(config)
    else:
        kind, chunk = "mamba2", config.get("chunk_size", chunk_tokens)
        recurrent_heads, width, state, groups, kernel = mamba2_sizes(config)
    return ModelShape(
        name=name,
        kind=kind,
        recurrent_layers=layers[kind],
        nheads=recurrent_heads,
        headdim=width,
        dstate=state,
        ngroups=groups,
        chunk_size=chunk,
        conv_window=kernel - 1,
        attention_layers=layers["attention"],
        attention_width=heads * head_dim,
        kv_width=2 * kv_heads * head_dim,
        active_params=active_params,
        total_params=total_params,
    )


NEMOTRON_H_8B = shape_of("nemotron-h-8b", "Nemotron-H-8B", active_params=8.1e9, total_params=8.1e9)
SHAPES = (
    NEMOTRON_H_8B,
    # Copies of Falcon-H1's config in other projects say 128, which would make every checkpoint cheaper.
    shape_of("falcon-h1-7b", "Falcon-H1-7B", active_params=7.6e9, total_params=7.6e9, chunk_tokens=256),
    shape_of(
        "granite-4-h-small", "Granite-4.0-H-Small", active_params=9e9, total_params=32e9, chunk_tokens=256
    ),
    shape_of("qwen3-next-80b-a3b", "Qwen3-Next-80B-A3B", active_params=3e9, total_params=80e9),
)
