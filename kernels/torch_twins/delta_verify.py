"""The delta rule where it verifies drafts, in vectorised torch: Gated DeltaNet and Kimi Delta Attention.

Twin of SGLang's `fused_sigmoid_gating_delta_rule_update` (0.5.23), for machines without a GPU.
"""

from __future__ import annotations

import torch

from marconi_kernels.torch_twins.delta_rule import delta_rule_step, fused_gdn_gating, l2norm
from marconi_kernels.torch_twins.kda import kda_gate


def fused_sigmoid_gating_delta_rule_update(
    A_log,
    a,
    dt_bias,
    softplus_beta,
    softplus_threshold,
    q,
    k,
    v,
    b,
    initial_state_source,
    initial_state_indices,
    scale=None,
    use_qk_l2norm_in_kernel=False,
    cu_seqlens=None,
    is_kda=False,
    lower_bound=None,
    disable_state_update=False,
    intermediate_states_buffer=None,
    intermediate_state_indices=None,
    cache_steps=None,
    retrieve_parent_token=None,
    **unsupported,
):
    """Verify N trees of T draft tokens and keep the state after every token.

    q, k: [1, N·T, H, K]; v: [1, N·T, HV, V]; a: N·T·HV raw gates, for KDA N·T·HV·K; b: N·T·HV;
    initial_state_source: [slots, HV, V, K], left as it is; initial_state_indices: int[N]; intermediate_states_buffer:
    [rows, T, HV, V, K], written at `intermediate_state_indices`; retrieve_parent_token: int[N, T], or None for a chain;
    lower_bound: of KDA's safe gate. Returns [1, N·T, HV, V].
    Raises: NotImplementedError for what SGLang's backends don't ask for while they verify."""
    if not disable_state_update or intermediate_states_buffer is None or cu_seqlens is None:
        raise NotImplementedError(
            "the torch delta rule takes several tokens only where their states are kept"
        )
    if any(value is not None and value is not False for value in unsupported.values()):
        raise NotImplementedError(f"the torch delta rule doesn't know {', '.join(unsupported)}")
    heads, steps, count = v.shape[2], cache_steps, len(cu_seqlens) - 1
    if is_kda:
        g = kda_gate(a.reshape(count * steps, heads, -1), A_log, dt_bias, lower_bound)
        beta = b.reshape(count * steps, heads).float().sigmoid()
    else:
        g, beta = (
            part[0] for part in fused_gdn_gating(A_log, a, b, dt_bias, softplus_beta, softplus_threshold)
        )
    if use_qk_l2norm_in_kernel:
        q, k = l2norm(q), l2norm(k)
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    q, k = (x[0].float().repeat_interleave(heads // x.shape[2], dim=1) for x in (q * scale, k))
    q, k, values, g, beta = (x.unflatten(0, (count, steps)) for x in (q, k, v[0].float(), g, beta))
    slots = initial_state_indices[:count].long().clamp(min=0)
    state, out = initial_state_source[slots].float(), torch.empty_like(values)
    rows = intermediate_state_indices[:count].long()
    numbers = torch.arange(count, device=state.device)
    for step in range(steps):
        if step and retrieve_parent_token is not None:
            state = intermediate_states_buffer[rows, retrieve_parent_token[:, step].long()].float()
        out[:, step] = delta_rule_step(
            q[:, step], k[:, step], values[:, step], g[:, step], beta[:, step], state, numbers
        )
        intermediate_states_buffer[rows, step] = state.to(intermediate_states_buffer.dtype)
    return out.flatten(0, 1).unsqueeze(0).to(v.dtype)
