"""One step of the selective state space recurrence, in vectorised torch.

Twin of SGLang's Triton `selective_state_update` (0.5.23) for decoding on machines without a GPU, and of the
copy that keeps tracked states while decoding. A tree of draft tokens is verified in `verify.py`.
"""

import torch
import torch.nn.functional as F

PAD_SLOT_ID = -1


def selective_state_update(
    state,
    x,
    dt,
    A,
    B,
    C,
    D=None,
    z=None,
    dt_bias=None,
    dt_softplus=False,
    state_batch_indices=None,
    pad_slot_id=PAD_SLOT_ID,
    out=None,
    disable_state_update=False,
    intermediate_states_buffer=None,
    cache_steps=None,
    retrieve_parent_token=None,
    intermediate_state_indices=None,
    enable_stochastic_rounding=False,
    cache_philox_rounds=0,
):
    """state = state · exp(A · dt) + dt · x ⊗ B; out = state · C + D · x, gated by silu(z).

    state: [slots, h, p, n]; x, dt, z, out: [N, h, p]; A: [h, p, n]; B, C: [N, g, n]; D, dt_bias: [h, p];
    state_batch_indices: int[N] slots, `pad_slot_id` leaves a row's state alone.
    With several tokens a sequence, x [N, T, h, p] and so on: `verify_steps`.
    Mutates state (unless disable_state_update) and out.
    Raises: NotImplementedError for fp16 rounding, and for several tokens that would move the state on.
    """
    if enable_stochastic_rounding:
        raise NotImplementedError("stochastic rounding needs the Triton kernel")
    if state_batch_indices is None:
        slots = torch.arange(x.shape[0], device=x.device)
    else:
        slots = state_batch_indices.long()
    if x.dim() == 4:
        if not disable_state_update or intermediate_states_buffer is None or z is not None:
            raise NotImplementedError("several tokens at once are verified, their states kept apart")
        return verify_steps(
            state[slots.clamp(min=0)].float(),
            (x, dt, B, C),
            (A, D, dt_bias, dt_softplus),
            kept=intermediate_states_buffer,
            rows=intermediate_state_indices,
            parents=retrieve_parent_token,
            out=out,
        )
    new, y = advance(state[slots.clamp(min=0)].float(), x, dt, A, B, C, D, z, dt_bias, dt_softplus)
    out.copy_(y)
    if not disable_state_update:
        real = slots != pad_slot_id
        if not bool(real.all()):
            slots, new = slots[real], new[real]
        state[slots] = new.to(state.dtype)


def advance(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus):
    """One token. state: fp32[N, h, p, n], mutated; the rest as `selective_state_update`. Returns state, y."""
    heads, groups = state.shape[1], B.shape[1]
    if _same_for_a_head(A, dt, dt_bias):
        A, dt = A[:, :1, :1], dt[:, :, :1]
        dt_bias = None if dt_bias is None else dt_bias[:, :1]
    dt = dt.float()
    if dt_bias is not None:
        dt = dt + dt_bias.float()
    if dt_softplus:
        dt = F.softplus(dt)
    x32 = x.float()
    B = B.float().repeat_interleave(heads // groups, dim=1)  # [N, h, n]
    C = C.float().repeat_interleave(heads // groups, dim=1)
    state.mul_(torch.exp(A.float() * dt[..., None])).addcmul_((dt * x32)[..., None], B[:, :, None])
    y = torch.matmul(state, C[..., None]).squeeze(-1)
    if D is not None:
        y = y + x32 * D.float()
    if z is not None:
        y = y * F.silu(z.float())
    return state, y


def verify_steps(state, tokens, parameters, *, kept, rows, parents, out):
    """Run N trees of T draft tokens from the sequences' states and keep the state after every token.

    state: fp32[N, h, p, n]; tokens: x, dt [N, T, h, p], B, C [N, T, g, n]; parameters: A, D, dt_bias, dt_softplus;
    kept: [rows, T, h, p, n], written at `rows` int[N]; parents: int[N, T], or None for a chain; out: [N, T, h, p].
    Mutates kept and out.
    """
    A, D, dt_bias, dt_softplus = parameters
    rows = torch.arange(len(state), device=state.device) if rows is None else rows.long()
    for step in range(tokens[0].shape[1]):
        if step and parents is not None:
            state = kept[rows, parents[:, step].long()].float()
        x, dt, B, C = (part[:, step] for part in tokens)
        state, y = advance(state, x, dt, A, B, C, D, None, dt_bias, dt_softplus)
        kept[rows, step] = state.to(kept.dtype)
        out[:, step] = y.to(out.dtype)


def copy_tracked_states(
    conv_states,
    ssm_states,
    cache_indices,
    mamba_track_mask,
    mamba_track_indices,
    batch_size,
    check_freed_slots=False,
):
    """Copy the conv and SSM rows of the masked requests to their tracking slots (one layer).

    conv_states, ssm_states: [slots, ...]; cache_indices, mamba_track_indices: int[N];
    mamba_track_mask: bool[N]. Mutates conv_states and ssm_states.
    """
    mask = mamba_track_mask[:batch_size]
    if not bool(mask.any()):
        return
    source, target = cache_indices[:batch_size][mask].long(), mamba_track_indices[:batch_size][mask].long()
    if check_freed_slots:
        live = (source >= 0) & (target >= 0)
        source, target = source[live], target[live]
    conv_states[target] = conv_states[source]
    ssm_states[target] = ssm_states[source]


def copy_tracked_states_all_layers(
    conv_states_pool,
    ssm_states_pool,
    cache_indices,
    mamba_track_mask,
    mamba_track_indices,
    batch_size,
    *freed,
    **kw,
):
    """`copy_tracked_states` for pools with a leading layer dimension."""
    copy_tracked_states(
        conv_states_pool.transpose(0, 1),
        ssm_states_pool.transpose(0, 1),
        cache_indices,
        mamba_track_mask,
        mamba_track_indices,
        batch_size,
        *freed,
        **kw,
    )


def _same_for_a_head(A, dt, dt_bias):
    """Mamba2 expands one number a head over p and n without copying: strides of 0."""
    return (
        A.stride(-1) == 0
        and A.stride(-2) == 0
        and dt.stride(-1) == 0
        and (dt_bias is None or dt_bias.stride(-1) == 0)
    )
