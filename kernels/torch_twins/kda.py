"""Kimi Delta Attention in vectorised torch, under the names and with the arguments of SGLang's own operators.

The delta rule with one decay a key channel (`delta_rule`), and the gate that makes those decays from a projection.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from marconi_kernels.torch_twins import delta_stages
from marconi_kernels.torch_twins.delta_rule import delta_rule_step, l2norm, split_qkv

LOG2_E = 1.4426950408889634


def kda_gate(
    raw: torch.Tensor, a_log: torch.Tensor, dt_bias: torch.Tensor, lower_bound: float | None
) -> torch.Tensor:
    """Log decays, fp32[T, H, K]. raw: [T, H, K]; a_log: H elements; dt_bias: H·K elements; lower_bound: of the safe
    gate, None for the plain one."""
    heads, keys = raw.shape[-2:]
    shifted = raw.float() + dt_bias.float().view(heads, keys)
    rate = a_log.float().view(heads, 1).exp()
    if lower_bound is None:
        return -rate * F.softplus(shifted, threshold=20.0)
    return lower_bound * (rate * shifted).sigmoid()


def chunk_kda(
    q,
    k,
    v,
    g,
    beta,
    scale=None,
    initial_state=None,
    initial_state_indices=None,
    use_qk_l2norm_in_kernel=False,
    cu_seqlens=None,
    A_log=None,
    dt_bias=None,
    lower_bound=None,
    output_intermediate_states=False,
    track_state=None,
    track_chunk_idx=None,
    beta_is_raw=False,
    intra=None,
    state_pass=None,
    **unused,
):
    """q, k: [1, T, H, K]; v: [1, T, H, V]; g: [1, T, H, K], raw, or log decays without A_log;
    beta: [1, T, H]; initial_state: the layer's pool; intra, state_pass: stand for these two stages.
    Mutates initial_state, and track_state [S, H, V, K], which gets each sequence's state before its chunk
    track_chunk_idx (int[S], −1: none). Returns outputs [1, T, H, V]; with output_intermediate_states also the states
    before each chunk [1, NT, H, V, K]. Raises: NotImplementedError for what SGLang's KDA backend doesn't ask for."""
    if not use_qk_l2norm_in_kernel or initial_state_indices is None or cu_seqlens is None:
        raise NotImplementedError("the torch KDA takes ragged batches of raw keys and a pool of states")
    decay = g[0].float() if A_log is None else kda_gate(g[0], A_log, dt_bias, lower_bound)
    rate = beta[0].float().sigmoid() if beta_is_raw else beta[0].float()
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    grid = delta_stages.chunk_grid(cu_seqlens)
    total = delta_stages.decay_sums(decay * LOG2_E, grid).unsqueeze(0)
    queries, keys, values = l2norm(q), l2norm(k), v.float()
    shared = {"cu_seqlens": cu_seqlens, "chunk_indices": grid.indices}
    w, u, _, ends, scores, _ = (intra or delta_stages.chunk_kda_fwd_intra)(
        q=queries, k=keys, v=values, gk=total, beta=rate.unsqueeze(0), scale=scale, **shared
    )
    h, v_new = (state_pass or delta_stages.chunk_gated_delta_rule_fwd_h)(
        k=ends,
        w=w,
        u=u,
        gk=total,
        initial_state=initial_state,
        initial_state_indices=initial_state_indices,
        use_exp2=True,
        track_state=track_state,
        track_chunk_idx=track_chunk_idx,
        **shared,
    )
    out = delta_stages.outputs(queries[0] * scale, v_new[0], total[0], scores, h[0], grid)
    out = out.to(v.dtype).unsqueeze(0)
    return (out, h.to(k.dtype)) if output_intermediate_states else out


def fused_recurrent_kda_packed_decode(
    mixed_qkv,
    a,
    b,
    A_log,
    dt_bias,
    scale,
    initial_state,
    out,
    ssm_state_indices,
    use_qk_l2norm_in_kernel=False,
    lower_bound=None,
):
    """mixed_qkv: [N, 2·H·K + H·V]; a: [N, H·K]; b: [N, H]; initial_state: [slots, H, V, K]; out: [N, 1, H, V].
    Mutates initial_state and out, and returns them as (out, initial_state)."""
    q, k, v = split_qkv(mixed_qkv, initial_state)
    if use_qk_l2norm_in_kernel:
        q, k = l2norm(q), l2norm(k)
    heads = v.shape[1]
    q, k = (x.float().repeat_interleave(heads // x.shape[1], dim=1) for x in (q, k))
    decay = kda_gate(a.unflatten(1, (heads, -1)), A_log, dt_bias, lower_bound)
    beta = b.float().sigmoid()
    step = delta_rule_step(q * scale, k, v.float(), decay, beta, initial_state, ssm_state_indices)
    out.copy_(step.unsqueeze(1))
    return out, initial_state
