"""Kimi Delta Attention in vectorised torch, under the names and with the arguments of SGLang's own operators.

The delta rule with one decay a key channel (`delta_rule`), and the gate that makes those decays from a projection.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from marconi_kernels.torch_twins.delta_rule import (
    CHUNK_TOKENS,
    delta_rule_step,
    l2norm,
    prefill_batch,
    split_qkv,
)


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
    **unused,
):
    """q, k: [1, T, H, K]; v: [1, T, H, V]; g: [1, T, H, K], raw; beta: [1, T, H]; initial_state: the layer's pool.
    Mutates initial_state, and track_state [S, H, V, K], which gets each sequence's state before its chunk
    track_chunk_idx (int[S], −1: none). Returns outputs [1, T, H, V]; with output_intermediate_states also the states
    before each chunk [1, NT, H, V, K]. Raises: NotImplementedError for what SGLang's KDA backend doesn't ask for."""
    if not use_qk_l2norm_in_kernel or initial_state_indices is None or cu_seqlens is None or A_log is None:
        raise NotImplementedError(
            "the torch KDA takes ragged batches of raw keys and gates, and a pool of states"
        )
    decay = kda_gate(g[0], A_log, dt_bias, lower_bound)
    rate = beta[0].float().sigmoid() if beta_is_raw else beta[0]
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    states: list[torch.Tensor] | None = [] if output_intermediate_states or track_state is not None else None
    out = prefill_batch(
        q[0], k[0], v[0], decay, rate, initial_state, initial_state_indices, cu_seqlens, scale, states
    )
    if track_state is not None:
        first = 0
        assert states is not None
        for row, (length, chunk) in enumerate(
            zip(cu_seqlens.diff().tolist(), track_chunk_idx.tolist(), strict=True)
        ):
            if chunk >= 0:
                track_state[row] = states[first + chunk]
            first += -(-length // CHUNK_TOKENS)
    out = out.to(v.dtype).unsqueeze(0)
    if not output_intermediate_states:
        return out
    h = torch.stack(states) if states else initial_state.new_empty(0, *initial_state.shape[1:])
    return out, h.to(k.dtype).unsqueeze(0)


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
