"""From a config's fields to its layers, one function an architecture (keyed by `model_type`).

Each returns [(kind, LayerCost)] over all layers; embeddings and the head, run for one token only, are left out.
"""

from __future__ import annotations

from collections.abc import Callable

from marconi_ext.profiles.layers import (
    LayerCost,
    gdn,
    gqa,
    kda,
    lightning,
    mamba1,
    mamba2,
    mla,
    mlp,
    moe,
    short_conv,
)

Layers = list[tuple[str, LayerCost]]


def attention_sizes(c: dict) -> tuple[int, int, int]:
    """Query heads, KV heads, head dim."""
    heads = c["num_attention_heads"]
    head_dim = c.get("head_dim") or c.get("attention_head_dim") or c["hidden_size"] // heads
    return heads, c.get("num_key_value_heads") or heads, head_dim


def mamba2_sizes(c: dict) -> tuple[int, int, int, int, int]:
    """Heads, head dim, state dim, groups, conv kernel: by Nemotron-H's names, or Bamba's, which the others have."""
    if c.get("model_type") == "nemotron_h":
        return (
            c["mamba_num_heads"],
            c["mamba_head_dim"],
            c["ssm_state_size"],
            c["n_groups"],
            c["conv_kernel"],
        )
    inner = c.get("mamba_d_ssm") or c["mamba_expand"] * c["hidden_size"]
    heads = c["mamba_n_heads"]
    return heads, inner // heads, c["mamba_d_state"], c["mamba_n_groups"], c["mamba_d_conv"]


def gdn_sizes(c: dict) -> tuple[int, int, int, int, int]:
    """Key heads, value heads, key dim, value dim, conv kernel."""
    heads = c["linear_num_key_heads"], c["linear_num_value_heads"]
    return *heads, c["linear_key_head_dim"], c["linear_value_head_dim"], c["linear_conv_kernel_dim"]


def _attention(c: dict, kv_dtype_bytes: int, tp: int) -> LayerCost:
    return gqa(c["hidden_size"], *attention_sizes(c), kv_dtype_bytes=kv_dtype_bytes, tp=tp)


def _mamba2(c: dict, ssm_dtype_bytes: int, tp: int) -> LayerCost:
    return mamba2(c["hidden_size"], *mamba2_sizes(c), ssm_dtype_bytes=ssm_dtype_bytes, tp=tp)


def nemotron_h(c: dict, *, ssm_dtype_bytes: int, kv_dtype_bytes: int, tp: int) -> Layers:
    """`hybrid_override_pattern`: M Mamba-2, * attention, - squared-ReLU MLP, one kind a layer."""
    costs = {
        "M": ("mamba2", _mamba2(c, ssm_dtype_bytes, tp)),
        "*": ("attention", _attention(c, kv_dtype_bytes, tp)),
        "-": ("mlp", mlp(c["hidden_size"], c["intermediate_size"], gated=False)),
    }
    return [costs[letter] for letter in c["hybrid_override_pattern"]]


def falcon_h1(c: dict, *, ssm_dtype_bytes: int, kv_dtype_bytes: int, tp: int) -> Layers:
    """Attention and Mamba-2 side by side in every layer, then a gated MLP."""
    layer = [
        ("mamba2", _mamba2(c, ssm_dtype_bytes, tp)),
        ("attention", _attention(c, kv_dtype_bytes, tp)),
        ("mlp", mlp(c["hidden_size"], c["intermediate_size"], gated=True)),
    ]
    return layer * c["num_hidden_layers"]


def granite_hybrid(c: dict, *, ssm_dtype_bytes: int, kv_dtype_bytes: int, tp: int) -> Layers:
    """`layer_types` names the mixer; every layer has experts, a shared one, or only the shared one."""
    mamba = ("mamba2", _mamba2(c, ssm_dtype_bytes, tp))
    mixers = {"mamba": mamba, "attention": ("attention", _attention(c, kv_dtype_bytes, tp))}
    shared = c["shared_intermediate_size"]
    experts = c.get("num_local_experts") or 0
    if experts:
        active = c["num_experts_per_tok"]
        feed = (
            "moe",
            moe(c["hidden_size"], c["intermediate_size"], experts, active, shared_intermediate=shared),
        )
    else:
        feed = ("mlp", mlp(c["hidden_size"], shared, gated=True))
    return [layer for kind in c["layer_types"] for layer in (mixers[kind], feed)]


def bamba(c: dict, *, ssm_dtype_bytes: int, kv_dtype_bytes: int, tp: int) -> Layers:
    """Mamba-2 but for `attn_layer_indices`; a gated MLP in every layer."""
    mamba = ("mamba2", _mamba2(c, ssm_dtype_bytes, tp))
    attention = ("attention", _attention(c, kv_dtype_bytes, tp))
    feed = ("mlp", mlp(c["hidden_size"], c["intermediate_size"], gated=True))
    chosen = set(c["attn_layer_indices"])
    return [
        part for i in range(c["num_hidden_layers"]) for part in (attention if i in chosen else mamba, feed)
    ]


def jamba(c: dict, *, ssm_dtype_bytes: int, kv_dtype_bytes: int, tp: int) -> Layers:
    """Mamba-1 with attention every `attn_layer_period` layers, experts every `expert_layer_period`."""
    hidden = c["hidden_size"]
    rank = c["mamba_dt_rank"]
    rank = -(-hidden // 16) if rank == "auto" else rank
    sizes = (c["mamba_expand"] * hidden, c["mamba_d_state"], rank, c["mamba_d_conv"])
    mamba = ("mamba1", mamba1(hidden, *sizes, ssm_dtype_bytes=ssm_dtype_bytes, tp=tp))
    attention = ("attention", _attention(c, kv_dtype_bytes, tp))
    dense = ("mlp", mlp(hidden, c["intermediate_size"], gated=True))
    experts = ("moe", moe(hidden, c["intermediate_size"], c["num_experts"], c["num_experts_per_tok"]))
    found: Layers = []
    for i in range(c["num_hidden_layers"]):
        found.append(attention if i % c["attn_layer_period"] == c["attn_layer_offset"] else mamba)
        found.append(experts if i % c["expert_layer_period"] == c["expert_layer_offset"] else dense)
    return found


def qwen3_next(c: dict, *, ssm_dtype_bytes: int, kv_dtype_bytes: int, tp: int) -> Layers:
    """Gated DeltaNet with gated attention every `full_attention_interval` layers; experts and a shared one, or an MLP
    (Qwen3.5 and 3.6 dense)."""
    hidden = c["hidden_size"]
    linear = ("gdn", gdn(hidden, *gdn_sizes(c), ssm_dtype_bytes=ssm_dtype_bytes, tp=tp))
    output_gate = LayerCost(2 * hidden * c["num_attention_heads"] * c["head_dim"])
    attention = ("attention", _attention(c, kv_dtype_bytes, tp) + output_gate)
    if c.get("num_experts"):
        sizes = (c["moe_intermediate_size"], c["num_experts"], c["num_experts_per_tok"])
        feed = ("moe", moe(hidden, *sizes, shared_intermediate=c["shared_expert_intermediate_size"]))
    else:
        feed = ("mlp", mlp(hidden, c["intermediate_size"], gated=True))
    every = c["full_attention_interval"]
    mixers = [attention if (i + 1) % every == 0 else linear for i in range(c["num_hidden_layers"])]
    return [layer for mixer in mixers for layer in (mixer, feed)]


def kimi_linear(c: dict, *, ssm_dtype_bytes: int, kv_dtype_bytes: int, tp: int) -> Layers:
    """KDA layers and MLA layers by number (from 1); experts but for the first dense layers. Kimi K3 gates the outputs
    of both with full rank, and its experts are as wide as a projection of the residual stream."""
    hidden, linear = c["hidden_size"], c["linear_attn_config"]
    sizes = (linear["num_heads"], linear["head_dim"], linear["short_conv_kernel_size"])
    recurrent = ("kda", kda(hidden, *sizes, ssm_dtype_bytes=ssm_dtype_bytes, tp=tp))
    if linear.get("use_full_rank_gate"):
        inner = linear["num_heads"] * linear["head_dim"]
        low_rank = hidden * linear["head_dim"] + linear["head_dim"] * inner
        recurrent = ("kda", recurrent[1] + LayerCost(2 * (hidden * inner - low_rank)))
    dims = (c["kv_lora_rank"], c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"])
    latent = mla(
        hidden,
        c["num_attention_heads"],
        *dims,
        q_lora_rank=c.get("q_lora_rank"),
        kv_dtype_bytes=kv_dtype_bytes,
    )
    if c.get("mla_use_output_gate"):
        latent += LayerCost(2 * hidden * c["num_attention_heads"] * c["v_head_dim"])
    dense = experts = ("mlp", mlp(hidden, c["intermediate_size"], gated=True))
    if c.get("num_experts"):
        width = c["moe_intermediate_size"]
        shared = c["num_shared_experts"] * width
        routed = c.get("routed_expert_hidden_size") or hidden
        cost = moe(
            hidden,
            width * routed / hidden,
            c["num_experts"],
            c["num_experts_per_token"],
            shared_intermediate=shared,
        )
        if routed != hidden:
            cost += LayerCost(4 * hidden * routed)
        experts = ("moe", cost)
    found: Layers = []
    for i in range(c["num_hidden_layers"]):
        found.append(("mla", latent) if i + 1 in linear["full_attn_layers"] else recurrent)
        found.append(dense if i < c.get("first_k_dense_replace", 0) else experts)
    return found


def bailing_hybrid(c: dict, *, ssm_dtype_bytes: int, kv_dtype_bytes: int, tp: int) -> Layers:
    """Ring and Ling 2.5: lightning attention, with MLA at the end of each group; experts but for the first layers.
    Ling 3 has KDA in their place, with gates of full rank."""
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    if c.get("short_conv_kernel_size"):
        sizes = (heads, c["head_dim"], c["short_conv_kernel_size"])
        gates = LayerCost()
        if c.get("no_kda_lora"):
            width = heads * c["head_dim"]
            gates = LayerCost(4 * (hidden * width - hidden * c["head_dim"] - c["head_dim"] * width))
        recurrent = ("kda", kda(hidden, *sizes, ssm_dtype_bytes=ssm_dtype_bytes, tp=tp) + gates)
    else:
        cost = lightning(hidden, heads, c["head_dim"], ssm_dtype_bytes=ssm_dtype_bytes, tp=tp)
        recurrent = ("lightning", cost)
    dims = (c["kv_lora_rank"], c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"])
    latent = mla(hidden, heads, *dims, q_lora_rank=c.get("q_lora_rank"), kv_dtype_bytes=kv_dtype_bytes)
    dense = ("mlp", mlp(hidden, c["intermediate_size"], gated=True))
    width = c.get("moe_intermediate_size", 0)
    shared = c.get("num_shared_experts", 0) * width
    experts = (
        "moe",
        moe(hidden, width, c["num_experts"], c["num_experts_per_tok"], shared_intermediate=shared),
    )
    group = c["layer_group_size"]
    found: Layers = []
    for i in range(c["num_hidden_layers"]):
        linear = group[i] == 1 if isinstance(group, list) else (i + 1) % group
        found.append(recurrent if linear else ("mla", latent))
        found.append(dense if i < c["first_k_dense_replace"] else experts)
    return found


def lfm2(c: dict, *, ssm_dtype_bytes: int, kv_dtype_bytes: int, tp: int) -> Layers:
    """`layer_types` names the mixer: a short convolution or attention. LFM2-MoE has experts after the first layers."""
    hidden = c["hidden_size"]
    mixers = {
        "conv": ("short conv", short_conv(hidden, c["conv_L_cache"], tp=tp)),
        "full_attention": ("attention", _attention(c, kv_dtype_bytes, tp)),
    }
    width = c["intermediate_size"]
    if c.get("block_auto_adjust_ff_dim"):
        width = int(c.get("block_ffn_dim_multiplier", 1) * int(2 * width / 3))
        width += -width % c["block_multiple_of"]
    dense = experts = ("mlp", mlp(hidden, width, gated=True))
    if c.get("num_experts"):
        sizes = (c["moe_intermediate_size"], c["num_experts"], c["num_experts_per_tok"])
        experts = ("moe", moe(hidden, *sizes))
    found: Layers = []
    for i, kind in enumerate(c["layer_types"]):
        found += [mixers[kind], dense if i < c.get("num_dense_layers", 0) else experts]
    return found


ARCHITECTURES: dict[str, Callable[..., Layers]] = {
    "nemotron_h": nemotron_h,
    "falcon_h1": falcon_h1,
    "granitemoehybrid": granite_hybrid,
    "bamba": bamba,
    "jamba": jamba,
    "qwen3_next": qwen3_next,
    "qwen3_5_text": qwen3_next,
    "qwen3_5_moe_text": qwen3_next,
    "kimi_linear": kimi_linear,
    "bailing_hybrid": bailing_hybrid,
    "lfm2": lfm2,
    "lfm2_moe": lfm2,
}
