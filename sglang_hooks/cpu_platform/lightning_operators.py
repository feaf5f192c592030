"""The operators of lightning attention (Bailing, Ring) on the CPU.

Target: `seg_la_fwd` and the norms beside it under `sglang.kernels.ops.attention`. Why: Triton kernels without another
form. How: the torch twin of `marconi_kernels.torch_twins.lightning`, and plain torch here. Remove when: never.
"""

import torch
import torch.nn.functional as F

from marconi_kernels.torch_twins.lightning import seg_la_fwd
from sglang_hooks.cpu_platform.rebind import rebind


def apply() -> None:
    """Bind the torch operators; fast mode only."""
    rebind("sglang.kernels.ops.attention.linear.seg_la", "seg_la_fwd", seg_la_fwd)
    rebind("sglang.kernels.ops.attention.fla.layernorm_gated", "layernorm_fn", grouped_norm)


def grouped_norm(
    x,
    weight,
    bias,
    z=None,
    eps=1e-6,
    group_size=None,
    norm_before_gate=True,
    is_rms_norm=False,
    activation="swish",
):
    """A norm over groups of the last dimension, then the gate z. x, z: [..., D]; weight, bias: [D] or None."""
    if z is not None and not norm_before_gate:
        raise NotImplementedError("the torch norm gates last")
    grouped = x.float().unflatten(-1, (-1, group_size or x.shape[-1]))
    if not is_rms_norm:
        grouped = grouped - grouped.mean(-1, keepdim=True)
    normed = (grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + eps)).flatten(-2)
    normed = normed * weight.float()
    if bias is not None:
        normed = normed + bias.float()
    if z is not None:
        normed = normed * (z.float().sigmoid() if activation == "sigmoid" else F.silu(z.float()))
    return normed.to(x.dtype)
