"""The gated delta rule in vectorised torch: Gated DeltaNet and Kimi Delta Attention on machines without a GPU.

    S_t = S_{t-1} · exp(g_t) + β_t (v_t − S_{t-1} exp(g_t) k_t) k_tᵀ,    o_t = S_t q_t

with one decay a head (Gated DeltaNet) or one a key channel (Kimi Delta Attention). Twins of the chunked prefills
and packed decodes of SGLang 0.5.23 (`kernels.ops.attention.fla`); the pool keeps states `[slots, HV, V, K]`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from marconi_kernels.torch_twins import delta_stages

L2_EPSILON = 1e-6


def l2norm(x: torch.Tensor) -> torch.Tensor:
    """Each row of the last dimension scaled to length one, fp32."""
    x = x.float()
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPSILON)


def delta_rule_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    pool: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """One token for each of N sequences. Mutates `pool` at `slots`; a negative slot is padding and gives zeros.

    q, k: fp32[N, HV, K]; v: fp32[N, HV, V]; g: fp32[N, HV] or [N, HV, K]; beta: fp32[N, HV];
    pool: [slots, HV, V, K]; slots: int[N]. Returns fp32[N, HV, V].
    """
    slots = slots.long()
    real = slots >= 0
    state = pool[slots.clamp(min=0)].float()
    state.mul_(g.exp().unsqueeze(-2) if g.dim() == 3 else g.exp()[..., None, None])
    update = (v - (state @ k.unsqueeze(-1)).squeeze(-1)) * beta.unsqueeze(-1)
    state += update.unsqueeze(-1) * k.unsqueeze(-2)
    out = (state @ q.unsqueeze(-1)).squeeze(-1)
    if not bool(real.all()):
        out = out * real[:, None, None]
        slots, state = slots[real], state[real]
    pool[slots] = state.to(pool.dtype)
    return out


# ---- under the names and with the arguments of SGLang's own operators ----


def fused_gdn_gating(A_log, a, b, dt_bias, beta=1.0, threshold=20.0):
    """a, b: [T, HV]. Returns the log decays and β, fp32[1, T, HV] each."""
    decay = -A_log.float().exp() * F.softplus(a.float() + dt_bias.float(), beta, threshold)
    return decay.unsqueeze(0), b.float().sigmoid().unsqueeze(0)


def chunk_gated_delta_rule(
    q,
    k,
    v,
    g,
    beta,
    scale=None,
    initial_state=None,
    initial_state_indices=None,
    cu_seqlens=None,
    head_first=False,
    use_qk_l2norm_in_kernel=False,
    inplace_update=True,
    state_pass=None,
):
    """q, k: [1, T, H, K]; v: [1, T, HV, V]; g, beta: [1, T, HV]; initial_state: the layer's pool; state_pass: stands
    for the stage that walks through the states.
    Returns outputs [1, T, HV, V], None, and the states before each chunk [1, NT, HV, V, K] in k's dtype.
    Raises: NotImplementedError for what SGLang's GDN backend doesn't ask for."""
    if head_first or not use_qk_l2norm_in_kernel or initial_state_indices is None or cu_seqlens is None:
        raise NotImplementedError(
            "the torch delta rule takes ragged batches of raw keys and a pool of states"
        )
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    q, k_normed, v_wide = l2norm(q) * scale, l2norm(k), v.float()
    grid = delta_stages.chunk_grid(cu_seqlens)
    total = delta_stages.decay_sums(g[0].float(), grid)
    w, u, scores = delta_stages.solve(q[0], k_normed[0], v_wide[0], total, beta[0].float(), grid)
    h, v_new = (state_pass or delta_stages.chunk_gated_delta_rule_fwd_h)(
        k=k_normed,
        w=w.unsqueeze(0),
        u=u.unsqueeze(0),
        g=total.unsqueeze(0),
        initial_state=initial_state,
        initial_state_indices=initial_state_indices,
        cu_seqlens=cu_seqlens,
        chunk_indices=grid.indices,
        inplace_update=inplace_update,
    )
    out = delta_stages.outputs(q[0], v_new[0], total, scores, h[0], grid)
    return out.to(v.dtype).unsqueeze(0), None, h.to(k.dtype)


def fused_recurrent_gated_delta_rule_packed_decode(
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
):
    """mixed_qkv: [N, 2·H·K + HV·V]; a, b: [N, HV]; initial_state: [slots, HV, V, K]; out: [N, 1, HV, V].
    Mutates initial_state and out, and returns them as (out, initial_state)."""
    q, k, v = split_qkv(mixed_qkv, initial_state)
    g, beta = fused_gdn_gating(A_log, a, b, dt_bias)
    if use_qk_l2norm_in_kernel:
        q, k = l2norm(q), l2norm(k)
    heads = v.shape[1]
    q, k = (x.float().repeat_interleave(heads // x.shape[1], dim=1) for x in (q, k))
    step = delta_rule_step(q * scale, k, v.float(), g[0], beta[0], initial_state, ssm_state_indices)
    out.copy_(step.unsqueeze(1))
    return out, initial_state


def split_qkv(mixed: torch.Tensor, pool: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Packed rows [N, H·K + H·K + HV·V] into [N, H, K] twice and [N, HV, V]; the pool tells HV, V and K."""
    heads, value_dim, key_dim = pool.shape[-3:]
    keys = (mixed.shape[1] - heads * value_dim) // 2
    q, k, v = mixed.split([keys, keys, heads * value_dim], dim=1)
    return q.unflatten(1, (-1, key_dim)), k.unflatten(1, (-1, key_dim)), v.unflatten(1, (heads, value_dim))
