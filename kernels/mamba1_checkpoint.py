"""Save Mamba1 states at any tokens by rolling the recurrence forward through each sequence, once.

A Mamba1 prefill in the engine keeps no chunk states (it is a loop over tokens in torch), and its decay differs
for every channel and state, so that no matmul sums up a chunk. The nearest known state is the one that the extend
began with. One launch rolls it forward and saves every checkpoint it passes: exact, and one pass however
many checkpoints there are. It stops at a sequence's last checkpoint.

    h_t = exp(dt_t · A) · h_{t-1} + dt_t · x_t · B_t        (all per channel; A, h: [dim, dstate])

Numerics: fp32 throughout. Source of the recurrence: SGLang 0.5.23, srt/layers/attention/mamba/mamba1.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from marconi_kernels.dispatch import runs_triton
from marconi_kernels.grouped_plan import GroupedPlan
from marconi_kernels.launch import ceil_div, named_strides, next_power_of_2


def mamba1_states_reference(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    cu_seqlens: Sequence[int],
    seq: Sequence[int],
    end: Sequence[int],
    initial_states: torch.Tensor | None = None,
) -> torch.Tensor:
    """The definition in float64. x, dt (after softplus): [T, dim]; A: [dim, dstate]; B: [T, dstate].

    initial_states: [S, dim, dstate] or None. Returns: float64[N, dim, dstate]
    """
    x, dt, A, B = x.double(), dt.double(), A.double(), B.double()
    out = x.new_empty(len(seq), *A.shape)
    for n, (s, stop) in enumerate(zip(seq, end, strict=True)):
        h = torch.zeros_like(A) if initial_states is None else initial_states[s].double()
        for t in range(cu_seqlens[s], stop):
            h = torch.exp(dt[t][:, None] * A) * h + (dt[t] * x[t])[:, None] * B[t]
        out[n] = h
    return out


def save_mamba1_checkpoints_torch(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    cu_seqlens: torch.Tensor,
    plan: GroupedPlan,
    pool: torch.Tensor,
    *,
    initial_indices: torch.Tensor,
) -> None:
    """The same in torch, token by token. Arguments as `save_mamba1_checkpoints`."""
    cu, first = cu_seqlens.tolist(), plan.first.tolist()
    ends, slots = plan.end.tolist(), plan.slot.tolist()
    A = A.float()
    for seq, initial in enumerate(initial_indices.tolist()):
        state = pool[initial].float() if initial >= 0 else torch.zeros_like(A)
        token = cu[seq]
        for row in range(first[seq], first[seq + 1]):
            for t in range(token, ends[row]):
                step = dt[t].float()
                state = torch.exp(step[:, None] * A) * state + (step * x[t].float())[:, None] * B[t].float()
            token = ends[row]
            pool[slots[row]] = state.to(pool.dtype)


@triton.jit
def _mamba1_checkpoint_kernel(
    # pointers
    x_ptr,
    dt_ptr,
    a_ptr,
    b_ptr,
    pool_ptr,
    cu_seqlens_ptr,
    initial_ptr,
    plan_first_ptr,
    plan_end_ptr,
    plan_slot_ptr,
    # sizes
    dim,
    dstate,
    num_slots,
    # strides
    stride_x_token,
    stride_x_dim,
    stride_dt_token,
    stride_dt_dim,
    stride_a_dim,
    stride_a_state,
    stride_b_token,
    stride_b_state,
    stride_pool_slot,
    stride_pool_dim,
    stride_pool_state,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    seq = tl.program_id(1)
    row = tl.load(plan_first_ptr + seq)
    last_row = tl.load(plan_first_ptr + seq + 1)
    if row == last_row:
        return
    offs_d = tl.program_id(0).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    offs_n = tl.arange(0, BLOCK_N)
    mask_d, mask_n = offs_d < dim, offs_n < dstate
    mask = mask_d[:, None] & mask_n[None, :]
    offs_pool = offs_d[:, None] * stride_pool_dim + offs_n[None, :] * stride_pool_state

    initial = tl.load(initial_ptr + seq).to(tl.int64)
    known = (initial >= 0) & (initial < num_slots)
    state = tl.load(pool_ptr + initial * stride_pool_slot + offs_pool, mask=mask & known, other=0.0)
    state = state.to(tl.float32)
    A = tl.load(
        a_ptr + offs_d[:, None] * stride_a_dim + offs_n[None, :] * stride_a_state, mask=mask, other=0.0
    ).to(tl.float32)
    token = tl.load(cu_seqlens_ptr + seq).to(tl.int64)
    for r in range(row, last_row):
        end = tl.load(plan_end_ptr + r)
        for t in range(token, end):
            dt = tl.load(dt_ptr + t * stride_dt_token + offs_d * stride_dt_dim, mask=mask_d, other=0.0)
            x = tl.load(x_ptr + t * stride_x_token + offs_d * stride_x_dim, mask=mask_d, other=0.0)
            b = tl.load(b_ptr + t * stride_b_token + offs_n * stride_b_state, mask=mask_n, other=0.0)
            dt = dt.to(tl.float32)
            state = (
                tl.exp(dt[:, None] * A) * state + (dt * x.to(tl.float32))[:, None] * b.to(tl.float32)[None, :]
            )
        token = end
        slot = tl.load(plan_slot_ptr + r)
        tl.store(
            pool_ptr + slot * stride_pool_slot + offs_pool, state.to(pool_ptr.dtype.element_ty), mask=mask
        )


def launch_config(dim: int, dstate: int) -> dict[str, int]:
    """32 channels a program and one warp: the walk is a chain of loads, so many small programs hide it best."""
    return {
        "BLOCK_D": min(32, next_power_of_2(dim)),
        "BLOCK_N": next_power_of_2(dstate),
        "num_warps": 1,
        "num_stages": 2,
    }


def save_mamba1_checkpoints_triton(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    cu_seqlens: torch.Tensor,
    plan: GroupedPlan,
    pool: torch.Tensor,
    *,
    initial_indices: torch.Tensor,
) -> None:
    """Launch the kernel. Arguments as `save_mamba1_checkpoints`; nothing is checked here."""
    dim, dstate = A.shape
    config = launch_config(dim, dstate)
    _mamba1_checkpoint_kernel[(ceil_div(dim, config["BLOCK_D"]), cu_seqlens.numel() - 1)](
        x_ptr=x,
        dt_ptr=dt,
        a_ptr=A,
        b_ptr=B,
        pool_ptr=pool,
        cu_seqlens_ptr=cu_seqlens,
        initial_ptr=initial_indices,
        plan_first_ptr=plan.first,
        plan_end_ptr=plan.end,
        plan_slot_ptr=plan.slot,
        dim=dim,
        dstate=dstate,
        num_slots=pool.shape[0],
        **named_strides("x", x, "token", "dim"),
        **named_strides("dt", dt, "token", "dim"),
        **named_strides("a", A, "dim", "state"),
        **named_strides("b", B, "token", "state"),
        **named_strides("pool", pool, "slot", "dim", "state"),
        **config,
    )


def save_mamba1_checkpoints(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    cu_seqlens: torch.Tensor,
    plan: GroupedPlan,
    pool: torch.Tensor,
    *,
    initial_indices: torch.Tensor,
) -> None:
    """Save the Mamba1 state at every row of `plan`.

    x, dt: [T, dim] - scan input, and step sizes after softplus; A: [dim, dstate]; B: [T, dstate]
    plan: from `group_by_sequence`; its slots must not be among initial_indices
    pool: [num_slots, dim, dstate], any strides; the engine's [num_slots, dim, 1, dstate] as `pool[:, :, 0]`
    initial_indices: int[S] - slots that the sequences began from; below zero: from zeros

    Mutates: the plan's slots of pool. Raises: ValueError naming the argument.
    """
    num_tokens, num_seqs = x.shape[0], cu_seqlens.numel() - 1
    for name, tensor, shape in (
        ("dt", dt, tuple(x.shape)),
        ("A", A, (x.shape[1], A.shape[-1])),
        ("B", B, (num_tokens, A.shape[-1])),
        ("pool", pool, (pool.shape[0], *A.shape)),
        ("initial_indices", initial_indices, (num_seqs,)),
        ("plan", plan.first, (num_seqs + 1,)),
    ):
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected {list(shape)}, got {list(tensor.shape)}")
    save = save_mamba1_checkpoints_triton if runs_triton(x) else save_mamba1_checkpoints_torch
    save(x, dt, A, B, cu_seqlens, plan, pool, initial_indices=initial_indices)
