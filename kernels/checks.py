"""Argument checks of the launchers: a mismatch is a ValueError that names the argument, before any launch."""

from __future__ import annotations

from itertools import pairwise

import torch

from marconi_kernels.plan import CheckpointPlan

POOL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_ssm_arguments(
    x: torch.Tensor,
    B: torch.Tensor,
    dt: torch.Tensor,
    dA_cumsum: torch.Tensor,
    states: torch.Tensor,
    cu_seqlens: torch.Tensor,
    plan: CheckpointPlan,
    pool: torch.Tensor,
    initial_states: torch.Tensor | None,
) -> None:
    """Raise a ValueError that names the first argument whose shape, dtype or device does not fit."""
    if x.dim() != 3:
        raise ValueError(f"x: expected [tokens, nheads, headdim], got {list(x.shape)}")
    num_tokens, nheads, headdim = x.shape
    if B.dim() != 3 or B.shape[0] != num_tokens or nheads % B.shape[1]:
        raise ValueError(f"B: expected [{num_tokens}, divisor of {nheads}, dstate], got {list(B.shape)}")
    if B.dtype != x.dtype:
        raise ValueError(f"B: dtype {B.dtype} differs from x's {x.dtype}")
    dstate = B.shape[2]
    if dA_cumsum.dim() != 3 or dA_cumsum.shape[0] != nheads or dA_cumsum.dtype != torch.float32:
        raise ValueError(
            f"dA_cumsum: expected float32[{nheads}, nchunks, Q], got {dA_cumsum.dtype}{list(dA_cumsum.shape)}"
        )
    _, nchunks, chunk_size = dA_cumsum.shape
    if not (nchunks - 1) * chunk_size < max(num_tokens, 1) <= nchunks * chunk_size:
        raise ValueError(f"dA_cumsum: {nchunks} chunks of {chunk_size} do not cover {num_tokens} tokens")
    if dt.shape != dA_cumsum.shape or dt.dtype != torch.float32:
        raise ValueError(f"dt: expected float32{list(dA_cumsum.shape)}, got {dt.dtype}{list(dt.shape)}")
    state_shape = (nheads, headdim, dstate)
    if states.shape != (nchunks, *state_shape):
        raise ValueError(f"states: expected {[nchunks, *state_shape]}, got {list(states.shape)}")
    check_devices(x, B=B, dt=dt, dA_cumsum=dA_cumsum, states=states)
    check_destination(x, state_shape, cu_seqlens, plan, pool, initial_states)


def check_destination(
    x: torch.Tensor,
    state_shape: tuple[int, int, int],
    cu_seqlens: torch.Tensor,
    plan: CheckpointPlan,
    pool: torch.Tensor,
    initial_states: torch.Tensor | None,
) -> None:
    """The part that is known before the scan's first stage: plan, pool and batch. x: tokens first."""
    if pool.dim() != 4 or pool.shape[1:] != state_shape:
        raise ValueError(f"pool: expected [num_slots, *{list(state_shape)}], got {list(pool.shape)}")
    if pool.dtype not in POOL_DTYPES:
        raise ValueError(f"pool: dtype {pool.dtype} is not one of {POOL_DTYPES}")
    check_cu_seqlens(cu_seqlens)
    num_seqs = cu_seqlens.numel() - 1
    if initial_states is not None and initial_states.shape != (num_seqs, *state_shape):
        shape = list(initial_states.shape)
        raise ValueError(f"initial_states: expected {[num_seqs, *state_shape]}, got {shape}")
    check_devices(x, cu_seqlens=cu_seqlens, plan=plan, pool=pool, initial_states=initial_states)
    if x.device.type == "cpu":  # reading the plan costs nothing here; on a GPU it would wait for the device
        cu = cu_seqlens.tolist()
        check_tokens(cu, x.shape[0])
        plan.validate(cu, pool.shape[0])


def check_devices(x: torch.Tensor, **others: torch.Tensor | CheckpointPlan | None) -> None:
    """Raise a ValueError naming the first argument that is not on x's device."""
    for name, other in others.items():
        if other is not None and other.device != x.device:
            raise ValueError(f"{name}: on {other.device}, but x is on {x.device}")


def check_conv_arguments(
    x: torch.Tensor,
    cu_seqlens: torch.Tensor,
    plan: CheckpointPlan,
    pool: torch.Tensor,
    has_initial_state: torch.Tensor | None,
    cache_indices: torch.Tensor | None,
) -> None:
    """Raise a ValueError that names the first argument whose shape, dtype or device does not fit."""
    if x.dim() != 2:
        raise ValueError(f"x: expected [dim, tokens], got {list(x.shape)}")
    if pool.dim() != 3 or pool.shape[1] != x.shape[0]:
        raise ValueError(f"pool: expected [num_slots, {x.shape[0]}, conv_kernel - 1], got {list(pool.shape)}")
    if pool.dtype not in POOL_DTYPES:
        raise ValueError(f"pool: dtype {pool.dtype} is not one of {POOL_DTYPES}")
    check_cu_seqlens(cu_seqlens)
    num_seqs = cu_seqlens.numel() - 1
    if (has_initial_state is None) != (cache_indices is None):
        raise ValueError(
            "cache_indices: has_initial_state and cache_indices are given together or not at all"
        )
    if cache_indices is not None and has_initial_state is not None:
        if cache_indices.shape != (num_seqs,) or cache_indices.dtype not in (torch.int32, torch.int64):
            got = f"{cache_indices.dtype}{list(cache_indices.shape)}"
            raise ValueError(f"cache_indices: expected int[{num_seqs}], got {got}")
        if has_initial_state.shape != (num_seqs,) or has_initial_state.dtype != torch.bool:
            raise ValueError(
                f"has_initial_state: expected bool[{num_seqs}], "
                f"got {has_initial_state.dtype}{list(has_initial_state.shape)}"
            )
    check_devices(
        x,
        cu_seqlens=cu_seqlens,
        plan=plan,
        pool=pool,
        has_initial_state=has_initial_state,
        cache_indices=cache_indices,
    )
    if x.device.type == "cpu":
        cu = cu_seqlens.tolist()
        plan.validate(cu, pool.shape[0])
        check_tokens(cu, x.shape[1])
        if cache_indices is not None and has_initial_state is not None:
            check_cached_slots(plan, cache_indices.tolist(), has_initial_state.tolist(), pool.shape[0])


def check_cached_slots(
    plan: CheckpointPlan, cached: list[int], has_initial_state: list[bool], num_slots: int
) -> None:
    """A cached window must lie in the pool, and no checkpoint may overwrite one that is still to be read."""
    used = {slot for slot, has_state in zip(cached, has_initial_state, strict=True) if has_state}
    if used and not (min(used) >= 0 and max(used) < num_slots):
        raise ValueError(f"cache_indices: {sorted(used)} outside the pool's {num_slots} slots")
    for row, (_, _, slot) in enumerate(plan.rows()):
        if slot >= 0 and slot in used:
            raise ValueError(f"slot: row {row} writes slot {slot}, which holds a sequence's cached window")


def check_cu_seqlens(cu_seqlens: torch.Tensor) -> None:
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"cu_seqlens: expected int[S + 1], got {cu_seqlens.dtype}{list(cu_seqlens.shape)}")
    if not cu_seqlens.is_contiguous():
        raise ValueError("cu_seqlens: must be contiguous")


def check_tokens(cu_seqlens: list[int], num_tokens: int) -> None:
    """Host offsets must rise from 0 and end within the batch's tokens."""
    if cu_seqlens[0] != 0 or any(b < a for a, b in pairwise(cu_seqlens)):
        raise ValueError(f"cu_seqlens: must rise from 0, got {cu_seqlens}")
    if cu_seqlens[-1] > num_tokens:
        raise ValueError(f"cu_seqlens: ends at {cu_seqlens[-1]}, but x has {num_tokens} tokens")


def check_gdn_arguments(
    k: torch.Tensor,
    v: torch.Tensor,
    g_cumsum: torch.Tensor,
    cu_seqlens: torch.Tensor,
    plan: CheckpointPlan,
    pool: torch.Tensor,
) -> None:
    """Raise a ValueError that names the first argument of a Gated DeltaNet save that does not fit."""
    if pool.dim() != 4 or pool.dtype not in POOL_DTYPES:
        raise ValueError(f"pool: expected [num_slots, heads, V, K], got {pool.dtype}{list(pool.shape)}")
    _, heads, value_dim, key_dim = pool.shape
    if k.dim() != 3 or k.shape[2] != key_dim or heads % k.shape[1]:
        raise ValueError(f"k: expected [tokens, divisor of {heads}, {key_dim}], got {list(k.shape)}")
    num_tokens = k.shape[0]
    if v.shape != (num_tokens, heads, value_dim) or v.dtype != k.dtype:
        expected = f"{k.dtype}{[num_tokens, heads, value_dim]}"
        raise ValueError(f"v_new: expected {expected}, got {v.dtype}{list(v.shape)}")
    if g_cumsum.shape != (num_tokens, heads):
        raise ValueError(f"g_cumsum: expected {[num_tokens, heads]}, got {list(g_cumsum.shape)}")
    check_cu_seqlens(cu_seqlens)
    check_devices(k, v_new=v, g_cumsum=g_cumsum, cu_seqlens=cu_seqlens, plan=plan, pool=pool)
    if k.device.type == "cpu":
        cu = cu_seqlens.tolist()
        check_tokens(cu, num_tokens)
        plan.validate(cu, pool.shape[0])
        for row, (seq, _, slot) in enumerate(plan.rows()):
            if slot >= 0 and cu[seq] == cu[seq + 1]:
                raise ValueError(
                    f"seq: row {row} has {seq}, a sequence without tokens, which has no chunk state"
                )
