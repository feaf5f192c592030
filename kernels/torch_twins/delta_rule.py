"""The gated delta rule in vectorised torch: Gated DeltaNet and Kimi Delta Attention on machines without a GPU.

    S_t = S_{t-1} · exp(g_t) + β_t (v_t − S_{t-1} exp(g_t) k_t) k_tᵀ,    o_t = S_t q_t

with one decay a head (Gated DeltaNet) or one a key channel (Kimi Delta Attention). Twins of the chunked prefills
and packed decodes of SGLang 0.5.23 (`kernels.ops.attention.fla`); the pool keeps states `[slots, HV, V, K]`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

CHUNK_TOKENS = 64
L2_EPSILON = 1e-6


def l2norm(x: torch.Tensor) -> torch.Tensor:
    """Each row of the last dimension scaled to length one, fp32."""
    x = x.float()
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPSILON)


def delta_rule_prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
    chunk_states: list[torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One sequence, in chunks of 64 tokens that begin at its first.

    q, k: fp32[T, HV, K], scaled and normalised; v: fp32[T, HV, V]; g: fp32[T, HV] or [T, HV, K], natural log;
    beta: fp32[T, HV]; state: fp32[HV, V, K], left as it is; chunk_states: gets the state before each chunk.
    Returns: outputs fp32[T, HV, V], and the state after the last token.
    """
    tokens = q.shape[0]
    per_key = g.dim() == 3
    chunks = -(-tokens // CHUNK_TOKENS)
    pad = chunks * CHUNK_TOKENS - tokens

    def chunked(
        x: torch.Tensor,
    ) -> torch.Tensor:  # [T, HV, …] -> [chunks, HV, 64, …]; padding changes no state
        x = F.pad(x, (0, 0) * (x.dim() - 1) + (0, pad))
        return x.unflatten(0, (chunks, CHUNK_TOKENS)).transpose(1, 2)

    q, k, v, g, beta = map(chunked, (q, k, v, g if per_key else g.unsqueeze(-1), beta.unsqueeze(-1)))
    total = g.cumsum(2)  # [chunks, HV, 64, K or 1]
    ahead = torch.ones(CHUNK_TOKENS, CHUNK_TOKENS, dtype=torch.bool, device=q.device).triu(1)
    if per_key:
        span = total.unsqueeze(3) - total.unsqueeze(2)  # [chunks, HV, i, j, K]; above zero only where j > i
        decay = span.masked_fill_(ahead[..., None], 0.0).exp_()
        keys = torch.einsum("chik,chijk,chjk->chij", k, decay, k)
        scores = torch.einsum("chik,chijk,chjk->chij", q, decay, k)
    else:
        span = total - total.transpose(2, 3)
        decay = span.masked_fill_(ahead, 0.0).exp_()
        keys, scores = (k @ k.transpose(2, 3)) * decay, (q @ k.transpose(2, 3)) * decay
    coupling = (keys * beta).masked_fill_(ahead, 0.0)
    coupling.diagonal(dim1=2, dim2=3).fill_(1.0)
    scores.masked_fill_(ahead, 0.0)
    since = total.exp()
    solved = torch.linalg.solve_triangular(
        coupling, torch.cat([v * beta, k * since * beta], dim=3), upper=False, unitriangular=True
    )
    updates, absorbed = solved.split([v.shape[3], k.shape[3]], dim=3)
    last = total[:, :, -1:]
    q_since, k_until, kept = q * since, k * (last - total).exp(), last.exp()
    outputs = torch.empty_like(v)
    for chunk in range(chunks):
        if chunk_states is not None:
            chunk_states.append(state)
        update = updates[chunk] - absorbed[chunk] @ state.transpose(1, 2)
        outputs[chunk] = q_since[chunk] @ state.transpose(1, 2) + scores[chunk] @ update
        state = state * kept[chunk] + update.transpose(1, 2) @ k_until[chunk]
    return outputs.transpose(1, 2).flatten(0, 1)[:tokens], state


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


def prefill_batch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    pool: torch.Tensor,
    slots: torch.Tensor,
    cu_seqlens: torch.Tensor,
    scale: float,
    chunk_states: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """A ragged batch, each sequence from its slot's state, which becomes the state after its last token.

    q, k: [T, H, K], not normalised; v: [T, HV, V]; g: [T, HV] or [T, HV, K]; beta: [T, HV];
    pool: [slots, HV, V, K]; slots: int[S]; cu_seqlens: int[S+1]; chunk_states: gets the states before all chunks, one
    sequence after another. Mutates pool. Returns fp32[T, HV, V].
    """
    heads = v.shape[1]
    q, k = (l2norm(x).repeat_interleave(heads // x.shape[1], dim=1) for x in (q, k))
    q = q * scale
    v, g, beta = v.float(), g.float(), beta.float()
    out = torch.zeros_like(v)
    starts = cu_seqlens.tolist()
    for start, stop, slot in zip(starts[:-1], starts[1:], slots.tolist(), strict=True):
        if stop > start and slot >= 0:
            span = slice(start, stop)
            before = pool[slot].to(
                torch.float32, copy=True
            )  # kept in chunk_states, and the slot is written below
            out[span], state = delta_rule_prefill(
                q[span], k[span], v[span], g[span], beta[span], before, chunk_states
            )
            pool[slot] = state.to(pool.dtype)
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
):
    """q, k: [1, T, H, K]; v: [1, T, HV, V]; g, beta: [1, T, HV]; initial_state: the layer's pool.
    Returns outputs [1, T, HV, V], None, and the states before each chunk [1, NT, HV, V, K] in k's dtype.
    Raises: NotImplementedError for what SGLang's GDN backend doesn't ask for."""
    if head_first or not use_qk_l2norm_in_kernel or initial_state_indices is None or cu_seqlens is None:
        raise NotImplementedError(
            "the torch delta rule takes ragged batches of raw keys and a pool of states"
        )
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    pool = initial_state if inplace_update else initial_state.clone()
    states: list[torch.Tensor] = []
    out = prefill_batch(
        q[0], k[0], v[0], g[0], beta[0], pool, initial_state_indices, cu_seqlens, scale, states
    )
    h = torch.stack(states) if states else pool.new_empty(0, *pool.shape[1:])
    return out.to(v.dtype).unsqueeze(0), None, h.to(k.dtype).unsqueeze(0)


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
    disable_state_update=False,
    intermediate_states_buffer=None,
    intermediate_state_indices=None,
    cache_steps=None,
    retrieve_parent_token=None,
    **unsupported,
):
    """Verify N trees of T draft tokens and keep the state after every token.

    q, k: [1, N·T, H, K]; v: [1, N·T, HV, V]; a, b: [N·T, HV]; initial_state_source: [slots, HV, V, K], left as it is;
    initial_state_indices: int[N]; intermediate_states_buffer: [rows, T, HV, V, K], written at
    `intermediate_state_indices`; retrieve_parent_token: int[N, T], or None for a chain. Returns [1, N·T, HV, V].
    Raises: NotImplementedError for what SGLang's GDN backend doesn't ask for while it verifies."""
    if is_kda or not disable_state_update or intermediate_states_buffer is None or cu_seqlens is None:
        raise NotImplementedError(
            "the torch delta rule takes several tokens only where their states are kept"
        )
    if any(value is not None for value in unsupported.values()):
        raise NotImplementedError(f"the torch delta rule doesn't know {', '.join(unsupported)}")
    heads, steps, count = v.shape[2], cache_steps, len(cu_seqlens) - 1
    g, beta = fused_gdn_gating(A_log, a, b, dt_bias, softplus_beta, softplus_threshold)
    if use_qk_l2norm_in_kernel:
        q, k = l2norm(q), l2norm(k)
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    q, k = (x[0].float().repeat_interleave(heads // x.shape[2], dim=1) for x in (q * scale, k))
    q, k, values, g, beta = (x.unflatten(0, (count, steps)) for x in (q, k, v[0].float(), g[0], beta[0]))
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


def split_qkv(mixed: torch.Tensor, pool: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Packed rows [N, H·K + H·K + HV·V] into [N, H, K] twice and [N, HV, V]; the pool tells HV, V and K."""
    heads, value_dim, key_dim = pool.shape[-3:]
    keys = (mixed.shape[1] - heads * value_dim) // 2
    q, k, v = mixed.split([keys, keys, heads * value_dim], dim=1)
    return q.unflatten(1, (-1, key_dim)), k.unflatten(1, (-1, key_dim)), v.unflatten(1, (heads, value_dim))
