"""Prefill FLOPs and cached bytes of one layer of each kind. A multiply-add is two FLOPs.

FLOPs of L tokens are linear·L + quadratic·L². Attention is causal: token t attends to t positions, so the
quadratic term is half that of a full matrix. Norms, activations and biases are left out (under 1 %).
Bytes are those of one tensor-parallel rank; FLOPs are those of the whole model.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One layer: FLOPs of L tokens and bytes held for a prefix."""

    linear_flops: float = 0.0
    quadratic_flops: float = 0.0
    state_bytes: int = 0
    kv_bytes_per_token: int = 0

    def __add__(self, other: LayerCost) -> LayerCost:
        return LayerCost(
            self.linear_flops + other.linear_flops,
            self.quadratic_flops + other.quadratic_flops,
            self.state_bytes + other.state_bytes,
            self.kv_bytes_per_token + other.kv_bytes_per_token,
        )


def _per_rank(heads: int, tp: int) -> int:
    """Heads on one rank; fewer heads than ranks are replicated."""
    return max(heads // tp, 1)


def gqa(
    hidden: int, heads: int, kv_heads: int, head_dim: int, *, kv_dtype_bytes: int = 2, tp: int = 1
) -> LayerCost:
    """Grouped-query attention (Ainslie et al., 2305.13245): Q, K, V and output projections, scores and values."""
    width = heads * head_dim
    projections = 2 * hidden * (2 * width + 2 * kv_heads * head_dim)
    kv_bytes = 2 * _per_rank(kv_heads, tp) * head_dim * kv_dtype_bytes
    return LayerCost(projections + 2 * width, 2 * width, 0, kv_bytes)


def mla(
    hidden: int,
    heads: int,
    kv_lora_rank: int,
    nope_dim: int,
    rope_dim: int,
    value_dim: int,
    *,
    q_lora_rank: int | None = None,
    kv_dtype_bytes: int = 2,
) -> LayerCost:
    """Multi-head latent attention (DeepSeek-V2, 2405.04434), prefill with K and V expanded; the latent is cached."""
    query = heads * (nope_dim + rope_dim)
    q_flops = hidden * query if q_lora_rank is None else hidden * q_lora_rank + q_lora_rank * query
    expand = kv_lora_rank * heads * (nope_dim + value_dim)
    projections = 2 * (q_flops + hidden * (kv_lora_rank + rope_dim) + expand + heads * value_dim * hidden)
    scores = heads * (nope_dim + rope_dim + value_dim)
    return LayerCost(projections + scores, scores, 0, (kv_lora_rank + rope_dim) * kv_dtype_bytes)


def mlp(hidden: int, intermediate: int, *, gated: bool) -> LayerCost:
    """Feed-forward: up and down, and a gate where it has one (Shazeer, 2002.05202)."""
    return LayerCost(2 * (3 if gated else 2) * hidden * intermediate)


def moe(
    hidden: int, intermediate: float, experts: int, active: int, *, shared_intermediate: int = 0
) -> LayerCost:
    """Mixture of gated experts: the router, the active experts and a shared one (widths summed)."""
    return LayerCost(2 * hidden * experts + 6 * hidden * (active * intermediate + shared_intermediate))


def mamba2(
    hidden: int,
    heads: int,
    head_dim: int,
    state_dim: int,
    groups: int,
    conv_kernel: int,
    *,
    ssm_dtype_bytes: int = 4,
    conv_dtype_bytes: int = 2,
    tp: int = 1,
) -> LayerCost:
    """Mamba-2 (2405.21060): in-projection, causal conv, recurrence (decay, input and readout: 6·d_inner·N), out.

    State: SSM [heads, head_dim, N] and conv window [d_inner + 2·groups·N, kernel − 1]. Groups that don't divide
    the ranks are extended to one a rank, as SGLang's Mamba2StateShape does.
    """
    inner = heads * head_dim
    conv_dim = inner + 2 * groups * state_dim
    flops = 2 * hidden * (2 * inner + 2 * groups * state_dim + heads)
    flops += 2 * conv_kernel * conv_dim + 6 * inner * state_dim + 2 * inner * hidden
    held_groups = groups if groups % tp == 0 else tp
    conv_elements = (inner + 2 * held_groups * state_dim) // tp * (conv_kernel - 1)
    ssm_elements = heads // tp * head_dim * state_dim
    return LayerCost(flops, 0, ssm_elements * ssm_dtype_bytes + conv_elements * conv_dtype_bytes)


def mamba1(
    hidden: int,
    inner: int,
    state_dim: int,
    dt_rank: int,
    conv_kernel: int,
    *,
    ssm_dtype_bytes: int = 4,
    conv_dtype_bytes: int = 2,
    tp: int = 1,
) -> LayerCost:
    """Mamba (2312.00752): in-projection, conv, data-dependent B, C and dt, selective scan (9·d_inner·N), out."""
    flops = 4 * hidden * inner + 2 * conv_kernel * inner + 2 * inner * (dt_rank + 2 * state_dim)
    flops += 2 * dt_rank * inner + 9 * inner * state_dim + 2 * inner * hidden
    state = inner // tp * (state_dim * ssm_dtype_bytes + (conv_kernel - 1) * conv_dtype_bytes)
    return LayerCost(flops, 0, state)


def short_conv(hidden: int, conv_kernel: int, *, conv_dtype_bytes: int = 2, tp: int = 1) -> LayerCost:
    """LFM2's gated short convolution: in-projection to x and two gates, conv, out. State: its last inputs alone."""
    flops = 2 * hidden * 4 * hidden + 2 * conv_kernel * hidden
    return LayerCost(flops, 0, hidden // tp * (conv_kernel - 1) * conv_dtype_bytes)


def lightning(hidden: int, heads: int, head_dim: int, *, ssm_dtype_bytes: int = 4, tp: int = 1) -> LayerCost:
    """Lightning attention (2401.04658): projections of q, k, v and an output gate, a decayed outer product a token.

    The rule costs 5 FLOPs an element of the [heads, head_dim, head_dim] state: decay, write, query.
    """
    width = heads * head_dim
    flops = 2 * hidden * 4 * width + 5 * width * head_dim + 2 * width * hidden
    return LayerCost(flops, 0, heads // tp * head_dim * head_dim * ssm_dtype_bytes)


def gdn(
    hidden: int,
    key_heads: int,
    value_heads: int,
    key_dim: int,
    value_dim: int,
    conv_kernel: int,
    *,
    ssm_dtype_bytes: int = 4,
    conv_dtype_bytes: int = 2,
    tp: int = 1,
) -> LayerCost:
    """Gated DeltaNet (2412.06464): projections of q, k, v, z and two gates, conv on q, k, v, the delta rule.

    The rule costs 7 FLOPs an element of the [value_heads, key_dim, value_dim] state: decay, read, write, query.
    """
    keys, values = key_heads * key_dim, value_heads * value_dim
    conv_dim = 2 * keys + values
    flops = 2 * hidden * (2 * keys + 2 * values + 2 * value_heads) + 2 * conv_kernel * conv_dim
    flops += 7 * value_heads * key_dim * value_dim + 2 * values * hidden
    state = value_heads // tp * key_dim * value_dim * ssm_dtype_bytes
    return LayerCost(flops, 0, state + conv_dim // tp * (conv_kernel - 1) * conv_dtype_bytes)


def kda(
    hidden: int,
    heads: int,
    head_dim: int,
    conv_kernel: int,
    *,
    ssm_dtype_bytes: int = 4,
    conv_dtype_bytes: int = 2,
    tp: int = 1,
) -> LayerCost:
    """Kimi Delta Attention (2510.26692): as GDN with a gate per key channel; its two gates are low-rank."""
    width = heads * head_dim
    low_rank_gates = 2 * (hidden * head_dim + head_dim * width)
    flops = 2 * (3 * hidden * width + low_rank_gates + hidden * heads) + 2 * conv_kernel * 3 * width
    flops += 7 * width * head_dim + 2 * width * hidden
    state = width // tp * head_dim * ssm_dtype_bytes
    return LayerCost(flops, 0, state + 3 * width // tp * (conv_kernel - 1) * conv_dtype_bytes)
