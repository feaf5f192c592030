"""Save causal-conv windows at any tokens of a prefill, straight into the engine's conv pool.

With W = conv_kernel - 1, column j of the window after tokens [start, end) holds token t = end - W + j:
the raw pre-conv input x[:, t] if t >= start; else the cached window's column (t - start) + W, if the sequence
began with one; else 0. It must run *before* the causal conv, which overwrites the cached windows.

Numerics: a copy (rounded to the pool's dtype if that is narrower).
Source of the layout: SGLang 0.5.23, srt/layers/attention/mamba/mamba.py (MambaMixer2.forward).
Deviates: the engine clamps t to the extend and never mixes in the cached window.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from marconi_kernels.checks import check_conv_arguments
from marconi_kernels.dispatch import runs_triton
from marconi_kernels.launch import ceil_div, named_strides, next_power_of_2
from marconi_kernels.plan import CheckpointPlan
from marconi_kernels.tiles import load_row, load_tile, store_tile


def save_conv_checkpoints_torch(
    x: torch.Tensor,
    cu_seqlens: torch.Tensor,
    plan: CheckpointPlan,
    pool: torch.Tensor,
    *,
    has_initial_state: torch.Tensor | None = None,
    cache_indices: torch.Tensor | None = None,
) -> None:
    """The definition, and the engine's CPU path. Arguments as `save_conv_checkpoints`."""
    width = pool.shape[2]
    cu = cu_seqlens.tolist()
    for seq, end, slot in plan.rows():
        if slot < 0:
            continue
        fresh = min(end - cu[seq], width)  # columns that this extend provides
        window = pool[slot]
        if fresh < width:
            if has_initial_state is not None and cache_indices is not None and has_initial_state[seq]:
                window[:, : width - fresh] = pool[int(cache_indices[seq]), :, fresh:]
            else:
                window[:, : width - fresh] = 0
        window[:, width - fresh :] = x[:, end - fresh : end]


@triton.jit
def _conv_checkpoint_kernel(
    # pointers
    x_ptr,
    pool_ptr,
    cu_seqlens_ptr,
    seq_ptr,
    end_ptr,
    slot_ptr,
    has_initial_ptr,
    cache_indices_ptr,
    # sizes
    dim,
    width,
    num_seqs,
    num_slots,
    num_tokens,
    # strides
    stride_x_dim,
    stride_x_token,
    stride_pool_slot,
    stride_pool_dim,
    stride_pool_token,
    HAS_CACHE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    row = tl.program_id(1)
    seq, end, slot, start, _, live = load_row(
        row, seq_ptr, end_ptr, slot_ptr, cu_seqlens_ptr, num_seqs, num_slots, num_tokens
    )
    if not live:
        return

    offs_d = tl.program_id(0).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    offs_w = tl.arange(0, BLOCK_W)
    mask_d, mask_w = offs_d < dim, offs_w < width
    token = end - width + offs_w
    fresh = token >= start
    window = load_tile(x_ptr, offs_d, token, stride_x_dim, stride_x_token, mask_d, mask_w & fresh)
    window = window.to(pool_ptr.dtype.element_ty)
    if HAS_CACHE:
        cached_slot = tl.load(cache_indices_ptr + seq).to(tl.int64)
        cached = tl.load(has_initial_ptr + seq) & (cached_slot >= 0) & (cached_slot < num_slots)
        cached_ptr = pool_ptr + cached_slot * stride_pool_slot
        column = token - start + width
        mask_old = mask_w & (token < start) & cached
        old = load_tile(cached_ptr, offs_d, column, stride_pool_dim, stride_pool_token, mask_d, mask_old)
        window = tl.where(fresh[None, :], window, old)
    pool_ptr += slot * stride_pool_slot
    store_tile(pool_ptr, offs_d, offs_w, stride_pool_dim, stride_pool_token, mask_d, mask_w, window)


def launch_config(dim: int) -> dict[str, int]:
    """128 channels a program, one a thread: a copy has nothing to gain from more, and takes 32 registers so."""
    return {"BLOCK_D": min(128, next_power_of_2(dim)), "num_warps": 4, "num_stages": 1}


def save_conv_checkpoints_triton(
    x: torch.Tensor,
    cu_seqlens: torch.Tensor,
    plan: CheckpointPlan,
    pool: torch.Tensor,
    *,
    has_initial_state: torch.Tensor | None = None,
    cache_indices: torch.Tensor | None = None,
) -> None:
    """Launch the kernel. Arguments as `save_conv_checkpoints`; nothing is checked here."""
    dim, num_tokens = x.shape
    num_slots, _, width = pool.shape
    config = launch_config(dim)
    _conv_checkpoint_kernel[(ceil_div(dim, config["BLOCK_D"]), len(plan))](
        x_ptr=x,
        pool_ptr=pool,
        cu_seqlens_ptr=cu_seqlens,
        seq_ptr=plan.seq,
        end_ptr=plan.end,
        slot_ptr=plan.slot,
        has_initial_ptr=has_initial_state,
        cache_indices_ptr=cache_indices,
        dim=dim,
        width=width,
        num_seqs=cu_seqlens.numel() - 1,
        num_slots=num_slots,
        num_tokens=num_tokens,
        **named_strides("x", x, "dim", "token"),
        **named_strides("pool", pool, "slot", "dim", "token"),
        HAS_CACHE=cache_indices is not None,
        BLOCK_W=next_power_of_2(width),
        **config,
    )


def save_conv_checkpoints(
    x: torch.Tensor,
    cu_seqlens: torch.Tensor,
    plan: CheckpointPlan,
    pool: torch.Tensor,
    *,
    has_initial_state: torch.Tensor | None = None,
    cache_indices: torch.Tensor | None = None,
) -> None:
    """Save the conv window of every live row of `plan` into its slot of `pool`.

    x: [dim, T] - raw pre-conv input, any strides (the mixer's is a transposed view)
    cu_seqlens: int[S+1] - flat offsets (tokens)
    pool: [num_slots, dim, W] - W = conv_kernel - 1; also holds the cached windows; any strides; one layer
    has_initial_state: bool[S] - which sequences began with a cached window; cache_indices: int[S] - its slot

    Mutates: the live rows' slots of pool, and nothing else.
    Raises: ValueError naming the argument, before anything is launched. A plan on a GPU is not read back:
        validate it once on the host; the kernel skips rows that are out of range.
    """
    check_conv_arguments(x, cu_seqlens, plan, pool, has_initial_state, cache_indices)
    if len(plan) == 0:
        return
    save = save_conv_checkpoints_triton if runs_triton(x) else save_conv_checkpoints_torch
    save(x, cu_seqlens, plan, pool, has_initial_state=has_initial_state, cache_indices=cache_indices)
