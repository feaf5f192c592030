"""One step of the selective state space recurrence, in vectorised torch.

Twin of SGLang's Triton `selective_state_update` (0.5.23) for decoding on machines without a GPU, and of the
copy that keeps tracked states while decoding.
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
    Mutates state (unless disable_state_update) and out.
    Raises: NotImplementedError for speculative decoding (several steps, kept states) and fp16 rounding.
    """
    if intermediate_states_buffer is not None or retrieve_parent_token is not None or x.dim() != 3:
        raise NotImplementedError("the torch update takes one token a step: no speculative decoding")
    if enable_stochastic_rounding:
        raise NotImplementedError("stochastic rounding needs the Triton kernel")
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
    if state_batch_indices is None:
        slots = torch.arange(x.shape[0], device=x.device)
    else:
        slots = state_batch_indices.long()
    new = state[slots.clamp(min=0)].float()  # a copy: [N, h, p, n]
    new.mul_(torch.exp(A.float() * dt[..., None])).addcmul_((dt * x32)[..., None], B[:, :, None])
    y = torch.matmul(new, C[..., None]).squeeze(-1)
    if D is not None:
        y = y + x32 * D.float()
    if z is not None:
        y = y * F.silu(z.float())
    out.copy_(y)
    if not disable_state_update:
        real = slots != pad_slot_id
        if not bool(real.all()):
            slots, new = slots[real], new[real]
        state[slots] = new.to(state.dtype)


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
