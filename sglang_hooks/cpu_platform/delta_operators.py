"""The operators of the delta rule's models on the CPU: Gated DeltaNet (Qwen3-Next) and KDA (Kimi Linear).

Target: the chunked prefills, packed decodes and gates under `sglang.kernels.ops.attention`, the split of a packed
projection, the gated norm, and the gate of a shared expert. Why: all are Triton kernels without another form.
How: the torch twins of `marconi_kernels.torch_twins` (`delta_rule`, `kda`), and plain torch here. Remove when: never.
"""

import torch
import torch.nn.functional as F

from marconi_kernels.torch_twins import delta_rule as torch_delta_rule
from marconi_kernels.torch_twins import delta_stages
from marconi_kernels.torch_twins import kda as torch_kda
from sglang_hooks.cpu_platform.rebind import rebind

OPS = "sglang.kernels.ops.attention"


def apply() -> None:
    """Bind the torch operators; fast mode only."""
    _device_module()
    rebind(
        f"{OPS}.fla.chunk_delta_h",
        "chunk_gated_delta_rule_fwd_h",
        delta_stages.chunk_gated_delta_rule_fwd_h,
    )
    rebind(f"{OPS}.fla.chunk_intra", "chunk_kda_fwd_intra", delta_stages.chunk_kda_fwd_intra)
    rebind(f"{OPS}.fla.chunk", "chunk_gated_delta_rule", chunk_gated_delta_rule)
    rebind(
        f"{OPS}.fla.fused_recurrent",
        "fused_recurrent_gated_delta_rule_packed_decode",
        torch_delta_rule.fused_recurrent_gated_delta_rule_packed_decode,
    )
    rebind(f"{OPS}.fla.kda", "chunk_kda", chunk_kda)
    rebind(
        f"{OPS}.fla.fused_recurrent",
        "fused_recurrent_kda_packed_decode",
        torch_kda.fused_recurrent_kda_packed_decode,
    )
    rebind(f"{OPS}.linear.fused_gdn_gating", "fused_gdn_gating", torch_delta_rule.fused_gdn_gating)
    rebind(f"{OPS}.triton_gdn_fused_proj", "fused_qkvzba_split_reshape_cat", fused_qkvzba_split_reshape_cat)
    rebind(
        f"{OPS}.triton_gdn_fused_proj",
        "fused_qkvzba_split_reshape_cat_contiguous",
        fused_qkvzba_split_reshape_cat_contiguous,
    )
    rebind("sglang.kernels.ops.elementwise.elementwise", "fused_gate_sigmoid_mul", fused_gate_sigmoid_mul)
    rebind(
        "sglang.kernels.ops.elementwise.elementwise",
        "fused_gate_sigmoid_mul_add",
        fused_gate_sigmoid_mul_add,
    )
    from sglang.kernels.ops.attention.fla.fused_norm_gate import FusedRMSNormGated

    FusedRMSNormGated.forward = gated_rms_norm


def chunk_gated_delta_rule(*args, **kwargs):
    """The torch pipeline, with the stage that stands under SGLang's name: the extension may have hooked it."""
    from sglang.kernels.ops.attention.fla import chunk

    return torch_delta_rule.chunk_gated_delta_rule(
        *args, **kwargs, state_pass=chunk.chunk_gated_delta_rule_fwd_h
    )


def chunk_kda(*args, **kwargs):
    """The same for KDA, whose stages are two."""
    from sglang.kernels.ops.attention.fla import kda

    stages = {"intra": kda.chunk_kda_fwd_intra, "state_pass": kda.chunk_gated_delta_rule_fwd_h}
    return torch_kda.chunk_kda(*args, **kwargs, **stages)


def _device_module() -> None:
    """Target: `torch.get_device_module`. Why: without an argument it answers `torch.cuda` even where there is no
    GPU, and models ask it for the current device. How: `torch.cpu` then. Remove when: torch does so."""
    original = torch.get_device_module
    if torch.cuda.is_available() or hasattr(original, "original"):
        return

    def get_device_module(device=None):
        return torch.cpu if device is None else original(device)

    get_device_module.original = original
    torch.get_device_module = get_device_module


def fused_qkvzba_split_reshape_cat(mixed_qkvz, mixed_ba, num_heads_qk, num_heads_v, head_qk, head_v):
    """Qwen3-Next's projection, a key head's q, k, v, z side by side. mixed_qkvz: [T, …]; mixed_ba: [T, 2·HV].
    Returns q+k+v [T, 2·H·K + HV·V], z [T, HV, V], b and a [T, HV]."""
    ratio = num_heads_v // num_heads_qk
    groups = mixed_qkvz.unflatten(1, (num_heads_qk, -1))
    q, k, v, z = groups.split([head_qk, head_qk, ratio * head_v, ratio * head_v], dim=2)
    b, a = mixed_ba.unflatten(1, (num_heads_qk, -1)).split([ratio, ratio], dim=2)
    mixed = torch.cat([x.flatten(1) for x in (q, k, v)], dim=1)
    return mixed, z.reshape(-1, num_heads_v, head_v), b.flatten(1), a.flatten(1)


def fused_qkvzba_split_reshape_cat_contiguous(
    mixed_qkvz, mixed_ba, num_heads_qk, num_heads_v, head_qk, head_v
):
    """Qwen3.5's projection, all q, then all k, v and z. Returns as the one above."""
    width = 2 * num_heads_qk * head_qk + num_heads_v * head_v
    b, a = mixed_ba[:, : 2 * num_heads_v].split([num_heads_v, num_heads_v], dim=1)
    z = mixed_qkvz[:, width : width + num_heads_v * head_v].unflatten(1, (num_heads_v, head_v))
    return mixed_qkvz[:, :width].contiguous(), z.contiguous(), b.contiguous(), a.contiguous()


def gated_rms_norm(self, x, g, residual=None, prenorm=False, residual_in_fp32=False):
    """FusedRMSNormGated: the norm of x, then the gate. x, g: [T, D]."""
    if residual is not None or prenorm:
        raise NotImplementedError("the torch norm keeps no residual")
    normed = F.rms_norm(x.float(), (x.shape[-1],), None, self.eps)
    if self.weight is not None:
        normed = normed * self.weight.float()
    gate = g.float().sigmoid() if self.activation == "sigmoid" else F.silu(g.float())
    return (normed * gate).to(x.dtype)


def fused_gate_sigmoid_mul(hidden_states, gate_weight, shared_output):
    """shared_output · sigmoid(hidden_states · gate_weight), a gate a token. [T, D], [D], [T, D]."""
    return shared_output * (hidden_states @ gate_weight).sigmoid().unsqueeze(1)


def fused_gate_sigmoid_mul_add(hidden_states, gate_weight, shared_output, final_hidden_states):
    """Adds the gated output to final_hidden_states, in place."""
    final_hidden_states += fused_gate_sigmoid_mul(hidden_states, gate_weight, shared_output)
