"""Save Mamba2 SSM states at any tokens of a prefill, in one launch and straight into the engine's pool.

The scan cuts the *flattened batch* into chunks of Q tokens: chunk c holds flat tokens [cQ, (c+1)Q),
`dA_cumsum` restarts at each chunk, and `states[c]` is the state before chunk c. The state after tokens
[start, end), with c = (end-1)//Q, is a sum over the sequence's tokens in chunk c plus what was carried in:

    sum_k x_k ⊗ B_k · exp(dA[end-1] - dA[k]) · dt_k      for k in [max(start, cQ), end)
    + states[c] · exp(dA[end-1])                          if start < cQ
    + init · exp(dA[end-1] - dA[start-1])                 if start >= cQ, with dA[cQ-1] read as 0

`states[c]` is not used where start == cQ: there it belongs to the previous sequence.

Numerics: fp32 accumulation; B · scale is rounded to x's dtype before the dot, as the engine's own varlen
kernel does, so that the bits agree wherever tile and chunk grid do.
Source of the layout: SGLang 0.5.23, kernels/ops/mamba/triton_ops/ssd_chunk_state.py (chunk_state_varlen).
Deviates: any number of ends a sequence, no temporary, int64 offsets, and a 0-token checkpoint reads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import triton
import triton.language as tl

from marconi_kernels.checks import check_ssm_arguments
from marconi_kernels.dispatch import runs_triton
from marconi_kernels.launch import ceil_div, named_strides, next_power_of_2
from marconi_kernels.plan import CheckpointPlan
from marconi_kernels.tiles import load_row, load_tile, store_tile


def ssm_states_reference(
    x: torch.Tensor,
    B: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    cu_seqlens: Sequence[int],
    seq: Sequence[int],
    end: Sequence[int],
    initial_states: torch.Tensor | None = None,
) -> torch.Tensor:
    """The definition: h_t = exp(dt_t · A) · h_{t-1} + dt_t · x_t ⊗ B_t, token by token in float64.

    x: [T, nheads, headdim]; B: [T, ngroups, dstate]; dt: [T, nheads] after softplus; A: [nheads]
    Returns: float64[N, nheads, headdim, dstate], the state of sequence seq[n] after flat tokens below end[n].
    """
    x, dt, A = x.double(), dt.double(), A.double()
    B = B.double().repeat_interleave(x.shape[1] // B.shape[1], dim=1)
    out = x.new_empty(len(seq), x.shape[1], x.shape[2], B.shape[2])
    for n, (s, stop) in enumerate(zip(seq, end, strict=True)):
        h = torch.zeros_like(out[n]) if initial_states is None else initial_states[s].double()
        for t in range(cu_seqlens[s], stop):
            h = torch.exp(dt[t] * A)[:, None, None] * h
            h = h + dt[t][:, None, None] * x[t][:, :, None] * B[t][:, None, :]
        out[n] = h
    return out


def save_ssm_checkpoints_torch(
    x: torch.Tensor,
    B: torch.Tensor,
    dt: torch.Tensor,
    dA_cumsum: torch.Tensor,
    states: torch.Tensor,
    cu_seqlens: torch.Tensor,
    plan: CheckpointPlan,
    pool: torch.Tensor,
    *,
    initial_states: torch.Tensor | None = None,
    final_states: torch.Tensor | None = None,
) -> None:
    """The same result in vectorised torch: the engine's CPU path. Arguments as `save_ssm_checkpoints`."""
    _, nheads, headdim = x.shape
    _, ngroups, dstate = B.shape
    chunk_size = dA_cumsum.shape[2]
    cu = cu_seqlens.tolist()
    for seq, end, slot in plan.rows():
        if slot < 0:
            continue
        start = cu[seq]
        if end == start:  # nothing ran yet: the state the extend began with
            pool[slot] = 0 if initial_states is None else initial_states[seq]
            continue
        if final_states is not None and end == cu[seq + 1]:
            pool[slot] = final_states[seq]
            continue
        c = (end - 1) // chunk_size
        lo, hi = max(start - c * chunk_size, 0), end - c * chunk_size
        dA = dA_cumsum[:, c, lo:hi].float()  # [nheads, K]
        dA_end = dA[:, -1:]
        scale = torch.exp(dA_end - dA).mul_(dt[:, c, lo:hi])
        tokens = slice(c * chunk_size + lo, end)
        # Scaling x rather than B leaves one wide matmul a group: [heads a group · headdim, K] @ [K, dstate].
        scaled = x[tokens].float() * scale.t()[:, :, None]
        scaled = scaled.view(hi - lo, ngroups, -1).permute(1, 2, 0)
        acc = torch.bmm(scaled, B[tokens].float().transpose(0, 1)).view(nheads, headdim, dstate)
        if start < c * chunk_size:
            acc.addcmul_(states[c].float(), torch.exp(dA_end)[:, :, None])
        elif initial_states is not None:
            before = dA_cumsum[:, c, lo - 1 : lo].float() if lo > 0 else 0.0
            acc.addcmul_(initial_states[seq].float(), torch.exp(dA_end - before)[:, :, None])
        pool[slot] = acc.to(pool.dtype)


@triton.jit
def _ssm_checkpoint_kernel(
    # pointers
    x_ptr,
    b_ptr,
    dt_ptr,
    dA_ptr,
    states_ptr,
    init_ptr,
    pool_ptr,
    cu_seqlens_ptr,
    seq_ptr,
    end_ptr,
    slot_ptr,
    # sizes
    headdim,
    dstate,
    chunk_size,
    heads_per_group,
    num_seqs,
    num_slots,
    num_tokens,
    # strides
    stride_x_token,
    stride_x_head,
    stride_x_dim,
    stride_b_token,
    stride_b_group,
    stride_b_state,
    stride_dt_head,
    stride_dt_chunk,
    stride_dt_token,
    stride_dA_head,
    stride_dA_chunk,
    stride_dA_token,
    stride_states_chunk,
    stride_states_head,
    stride_states_dim,
    stride_states_state,
    stride_init_seq,
    stride_init_head,
    stride_init_dim,
    stride_init_state,
    stride_pool_slot,
    stride_pool_head,
    stride_pool_dim,
    stride_pool_state,
    HAS_INIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tiles_n = (dstate + BLOCK_N - 1) // BLOCK_N
    pid_m = tl.program_id(0) // tiles_n
    pid_n = tl.program_id(0) % tiles_n
    row = tl.program_id(1)
    head = tl.program_id(2).to(tl.int64)

    seq, end, slot, start, _, live = load_row(
        row, seq_ptr, end_ptr, slot_ptr, cu_seqlens_ptr, num_seqs, num_slots, num_tokens
    )
    if not live:
        return

    chunk = tl.maximum(end - 1, 0) // chunk_size
    first = chunk * chunk_size
    hi = (end - first).to(tl.int32)
    lo = tl.maximum(start - first, 0).to(tl.int32)
    x_ptr += first * stride_x_token + head * stride_x_head
    b_ptr += first * stride_b_token + (head // heads_per_group) * stride_b_group
    dt_ptr += chunk * stride_dt_chunk + head * stride_dt_head
    dA_ptr += chunk * stride_dA_chunk + head * stride_dA_head

    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_m = offs_m < headdim
    mask_n = offs_n < dstate
    # hi == 0 only for a 0-token checkpoint at flat token 0, where there is no decay to read.
    dA_end = tl.load(dA_ptr + (hi - 1) * stride_dA_token, mask=hi > 0, other=0.0).to(tl.float32)

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range((lo // BLOCK_K) * BLOCK_K, hi, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        mask_k = (offs_k >= lo) & (offs_k < hi)
        x = load_tile(x_ptr, offs_m, offs_k, stride_x_dim, stride_x_token, mask_m, mask_k)
        b = load_tile(b_ptr, offs_k, offs_n, stride_b_token, stride_b_state, mask_k, mask_n).to(tl.float32)
        dA = tl.load(dA_ptr + offs_k * stride_dA_token, mask=mask_k, other=0.0).to(tl.float32)
        dt = tl.load(dt_ptr + offs_k * stride_dt_token, mask=mask_k, other=0.0).to(tl.float32)
        scale = tl.where(mask_k, tl.exp(dA_end - dA) * dt, 0.0)
        b *= scale[:, None]
        acc += tl.dot(x, b.to(x_ptr.dtype.element_ty))

    # Loaded only now: prefetching the carry costs registers, and on sm_100 the fused multiply-add.
    if start < first:
        states_ptr += chunk * stride_states_chunk + head * stride_states_head
        carry = load_tile(states_ptr, offs_m, offs_n, stride_states_dim, stride_states_state, mask_m, mask_n)
        acc += carry.to(tl.float32) * tl.exp(dA_end)
    elif HAS_INIT:
        dA_before = tl.load(dA_ptr + (lo - 1) * stride_dA_token, mask=lo > 0, other=0.0).to(tl.float32)
        init_ptr += seq * stride_init_seq + head * stride_init_head
        carry = load_tile(init_ptr, offs_m, offs_n, stride_init_dim, stride_init_state, mask_m, mask_n)
        acc += carry.to(tl.float32) * tl.exp(dA_end - dA_before)

    pool_ptr += slot * stride_pool_slot + head * stride_pool_head
    store_tile(pool_ptr, offs_m, offs_n, stride_pool_dim, stride_pool_state, mask_m, mask_n, acc)


def launch_config(headdim: int, dstate: int, chunk_size: int) -> dict[str, int]:
    """Tile and warps: 64×64×64 with 4 warps and 2 stages, cut to the shape.

    One of the engine's own tiles, with few registers and no spills on every target (docs/kernels.md); tl.dot
    wants at least 16 a side. Only BLOCK_K and the warps' layout decide the bits.
    """

    def fit(size: int) -> int:
        return max(16, min(64, next_power_of_2(size)))

    return {
        "BLOCK_M": fit(headdim),
        "BLOCK_N": fit(dstate),
        "BLOCK_K": fit(chunk_size),
        "num_warps": 4,
        "num_stages": 2,
    }


def save_ssm_checkpoints_triton(
    x: torch.Tensor,
    B: torch.Tensor,
    dt: torch.Tensor,
    dA_cumsum: torch.Tensor,
    states: torch.Tensor,
    cu_seqlens: torch.Tensor,
    plan: CheckpointPlan,
    pool: torch.Tensor,
    *,
    initial_states: torch.Tensor | None = None,
    tile: Mapping[str, int] | None = None,
) -> None:
    """Launch the kernel. Arguments as `save_ssm_checkpoints`; nothing is checked here."""
    num_tokens, nheads, headdim = x.shape
    _, ngroups, dstate = B.shape
    config = launch_config(headdim, dstate, dA_cumsum.shape[2]) if tile is None else dict(tile)
    tiles = ceil_div(headdim, config["BLOCK_M"]) * ceil_div(dstate, config["BLOCK_N"])
    _ssm_checkpoint_kernel[(tiles, len(plan), nheads)](
        x_ptr=x,
        b_ptr=B,
        dt_ptr=dt,
        dA_ptr=dA_cumsum,
        states_ptr=states,
        init_ptr=initial_states,
        pool_ptr=pool,
        cu_seqlens_ptr=cu_seqlens,
        seq_ptr=plan.seq,
        end_ptr=plan.end,
        slot_ptr=plan.slot,
        headdim=headdim,
        dstate=dstate,
        chunk_size=dA_cumsum.shape[2],
        heads_per_group=nheads // ngroups,
        num_seqs=cu_seqlens.numel() - 1,
        num_slots=pool.shape[0],
        num_tokens=num_tokens,
        **named_strides("x", x, "token", "head", "dim"),
        **named_strides("b", B, "token", "group", "state"),
        **named_strides("dt", dt, "head", "chunk", "token"),
        **named_strides("dA", dA_cumsum, "head", "chunk", "token"),
        **named_strides("states", states, "chunk", "head", "dim", "state"),
        **named_strides("init", initial_states, "seq", "head", "dim", "state"),
        **named_strides("pool", pool, "slot", "head", "dim", "state"),
        HAS_INIT=initial_states is not None,
        **config,
    )


def save_ssm_checkpoints(
    x: torch.Tensor,
    B: torch.Tensor,
    dt: torch.Tensor,
    dA_cumsum: torch.Tensor,
    states: torch.Tensor,
    cu_seqlens: torch.Tensor,
    plan: CheckpointPlan,
    pool: torch.Tensor,
    *,
    initial_states: torch.Tensor | None = None,
    final_states: torch.Tensor | None = None,
    tile: Mapping[str, int] | None = None,
) -> None:
    """Save the SSM state of every live row of `plan` into its slot of `pool`.

    x: [T, nheads, headdim] - scan input, any strides
    B: [T, ngroups, dstate] - x's dtype
    dt, dA_cumsum: float32[nheads, nchunks, Q] - as the scan's first stage gives them (dt after softplus)
    states: [nchunks, nheads, headdim, dstate] - state before each chunk, after state passing
    cu_seqlens: int[S+1] - flat offsets (tokens)
    pool: [num_slots, nheads, headdim, dstate] - float32, bfloat16 or float16, any strides; one layer
    initial_states: [S, nheads, headdim, dstate] or None - what each sequence began with
    final_states: [S, nheads, headdim, dstate] or None - each sequence's state at its end, where the scan has made
        it already: the torch path copies it; the kernel makes its own in the same launch
    tile: BLOCK_M, BLOCK_N, BLOCK_K, num_warps, num_stages; None: `launch_config`

    Mutates: the live rows' slots of pool, and nothing else.
    Raises: ValueError naming the argument, before anything is launched. A plan on a GPU is not read back:
        validate it once on the host (`CheckpointPlan.validate`); the kernel skips rows that are out of range.
    """
    check_ssm_arguments(x, B, dt, dA_cumsum, states, cu_seqlens, plan, pool, initial_states)
    save_checked(
        x,
        B,
        dt,
        dA_cumsum,
        states,
        cu_seqlens,
        plan,
        pool,
        initial_states=initial_states,
        final_states=final_states,
        tile=tile,
    )


def save_checked(
    *arguments: torch.Tensor | CheckpointPlan,
    initial_states: torch.Tensor | None,
    final_states: torch.Tensor | None,
    tile: Mapping[str, int] | None,
) -> None:
    """`save_ssm_checkpoints` for the scan, whose stages make what fits and which has looked at the rest."""
    x, *_, plan, _ = arguments
    if len(plan) == 0:
        return
    if runs_triton(x):
        save_ssm_checkpoints_triton(*arguments, initial_states=initial_states, tile=tile)
    else:
        save_ssm_checkpoints_torch(*arguments, initial_states=initial_states, final_states=final_states)
