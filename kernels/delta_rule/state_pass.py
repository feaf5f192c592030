"""The state pass of a gated delta rule's prefill with exact checkpoints: one walk through each sequence's chunks.

It computes what the engine's own state pass computes (chunk states, new values, final states) and saves the
state at any tokens on the way, out of fp32 registers. In the place of the engine's stage it costs nothing but the
checkpoints' own dots and stores; beside it, it is the cheapest exact way to get them, since the chunk states
that the engine keeps are rounded to bf16 (see `ssm_checkpoint`): the nearest exact state is the initial one.

For a chunk with state h, inputs w, u (the delta rule's factors), k, and decay sums g:
    v_new = u - w · hᵀ;     h(end) = h · exp(g[end-1]) + sum_{t < end} exp(g[end-1] - g[t]) · v_new_t ⊗ k_t
A checkpoint is the second line at its token, the next chunk's state the same line at the chunk's last.

Gated DeltaNet has one g a head, in natural logs, and v_new takes the factor exp(g[end-1] - g[t]). Kimi Delta
Attention has one a key channel, in log2 units, and k takes the factor 2^(g[end-1] - g[t]). Its engine hands its own
pass keys that are scaled to the chunk's end already; from those a state inside the chunk would need the factor
2^(g[end-1] - g[last]), which is above one and overflows where a key channel decays fast. So this pass reads the keys
as they were: every factor is one or less, and at a chunk's end they become the engine's bits.
A linear attention without the delta rule (lightning) has no w: v_new = u. Its engine has one fused kernel, which takes
blocks of 32 tokens, scales keys to a block's end and has its dots in fp32. So does this pass, and there is no h.

Numerics: fp32 state; with the delta rule h and whichever of v_new and k is scaled are rounded to k's dtype before each
dot. A checkpoint has the bits of a pass that ends there, always: the chunk grid restarts with each sequence. The dots
are formed as the engine's, keys first, so that the sum over a chunk's tokens is taken apart from the decayed state.
Source: SGLang 0.5.23, kernels/ops/attention/fla/chunk_delta_h.py; without the delta rule, ../linear/seg_la.py.
Deviates: any number of saved states at any tokens; one key block instead of slices of 64, so that with more than 64
keys the dot with w is one sum where the engine has several. Whether the bits are the engine's there, hardware says.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from marconi_kernels.delta_rule.ssm_checkpoint import CHUNK_SIZE, first_chunks
from marconi_kernels.dispatch import runs_triton
from marconi_kernels.grouped_plan import GroupedPlan
from marconi_kernels.launch import ceil_div, named_strides, next_power_of_2
from marconi_kernels.tiles import load_tile, store_tile

FUSED_BLOCK_SIZE = 32
"""Tokens of a block of lightning attention's kernel."""


def chunk_tokens(w: torch.Tensor | None) -> int:
    """Tokens of a chunk: from its first g is summed, and one dot takes it."""
    return FUSED_BLOCK_SIZE if w is None else CHUNK_SIZE


def delta_state_pass_torch(
    k: torch.Tensor,
    w: torch.Tensor | None,
    u: torch.Tensor,
    g_cumsum: torch.Tensor,
    cu_seqlens: torch.Tensor,
    plan: GroupedPlan | None,
    pool: torch.Tensor,
    *,
    initial_indices: torch.Tensor,
    h: torch.Tensor | None = None,
    v_new: torch.Tensor | None = None,
    update_initial: bool = False,
    chunk_offsets: torch.Tensor | None = None,
    keys_at_chunk_end: bool = False,
) -> None:
    """The same in torch, vectorised over heads. Arguments as `delta_state_pass`; plan: None saves nothing.

    keys_at_chunk_end: k is scaled to its chunk's end already, as the engine's stage takes it; then plan must be None
    """
    cu = cu_seqlens.tolist()
    chunk_of = (first_chunks(cu_seqlens) if chunk_offsets is None else chunk_offsets).tolist()
    first, ends, slots = ([0] * len(cu), [], []) if plan is None else plan.host_rows()
    power = torch.exp2 if g_cumsum.dim() == 3 else torch.exp
    all_keys = k.float().repeat_interleave(u.shape[1] // k.shape[1], dim=1).transpose(0, 1)  # [heads, T, K]
    all_values, all_w = u.float().transpose(0, 1), None if w is None else w.float().transpose(0, 1)
    all_g = g_cumsum.float().reshape(len(k), u.shape[1], -1).transpose(0, 1)  # [heads, T, K or 1]
    for seq, initial in enumerate(initial_indices.tolist()):
        state = pool[initial].float() if initial >= 0 else torch.zeros(pool.shape[1:], dtype=torch.float32)
        rows = list(range(first[seq], first[seq + 1]))
        for row in rows:
            if ends[row] == cu[seq]:
                pool[slots[row]] = state.to(pool.dtype)
        step = chunk_tokens(w)
        for c, begin in enumerate(range(cu[seq], cu[seq + 1], step)):
            stop = min(begin + step, cu[seq + 1])
            if h is not None:
                h[chunk_of[seq] + c] = state
            values = all_values[:, begin:stop]
            if all_w is not None:
                values = values - all_w[:, begin:stop] @ state.transpose(1, 2)
            if v_new is not None:
                v_new[begin:stop] = values.transpose(0, 1)

            def state_at(end, state=state, begin=begin, values=values):
                keys, g, last = all_keys[:, begin:end], all_g[:, begin:end], all_g[:, end - 1 : end]
                scaled = keys if keys_at_chunk_end else keys * power(last - g)
                return torch.baddbmm(state * power(last), values[:, : end - begin].transpose(1, 2), scaled)

            for row in rows:
                if begin < ends[row] <= stop:
                    pool[slots[row]] = state_at(ends[row]).to(pool.dtype)
            state = state_at(stop)
        if update_initial and initial >= 0:
            pool[initial] = state.to(pool.dtype)


@triton.jit
def _delta_state_pass_kernel(
    # pointers
    k_ptr,
    w_ptr,
    u_ptr,
    g_ptr,
    h_ptr,
    v_new_ptr,
    pool_ptr,
    cu_seqlens_ptr,
    first_chunk_ptr,
    initial_ptr,
    plan_first_ptr,
    plan_end_ptr,
    plan_slot_ptr,
    # sizes
    value_dim,
    key_dim,
    heads_per_key_head,
    num_slots,
    # strides
    stride_k_token,
    stride_k_head,
    stride_k_dim,
    stride_w_token,
    stride_w_head,
    stride_w_dim,
    stride_u_token,
    stride_u_head,
    stride_u_dim,
    stride_g_token,
    stride_g_head,
    stride_g_dim,
    stride_h_chunk,
    stride_h_head,
    stride_h_value,
    stride_h_key,
    stride_v_new_token,
    stride_v_new_head,
    stride_v_new_dim,
    stride_pool_slot,
    stride_pool_head,
    stride_pool_value,
    stride_pool_key,
    DELTA_RULE: tl.constexpr,
    PER_KEY: tl.constexpr,
    SAVE_H: tl.constexpr,
    SAVE_V_NEW: tl.constexpr,
    UPDATE_INITIAL: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    seq = tl.program_id(1)
    head = tl.program_id(2).to(tl.int64)
    start = tl.load(cu_seqlens_ptr + seq).to(tl.int64)
    stop = tl.load(cu_seqlens_ptr + seq + 1).to(tl.int64)
    row = tl.load(plan_first_ptr + seq)
    last_row = tl.load(plan_first_ptr + seq + 1)

    offs_v = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    offs_k = tl.arange(0, BLOCK_K)
    offs_t = tl.arange(0, CHUNK)
    mask_v, mask_k = offs_v < value_dim, offs_k < key_dim
    mask_state = mask_v[:, None] & mask_k[None, :]
    pool_ptr += head * stride_pool_head
    offs_pool = offs_v[:, None] * stride_pool_value + offs_k[None, :] * stride_pool_key
    k_ptr += (head // heads_per_key_head) * stride_k_head
    if DELTA_RULE:
        w_ptr += head * stride_w_head
    u_ptr += head * stride_u_head
    g_ptr += head * stride_g_head

    initial = tl.load(initial_ptr + seq).to(tl.int64)
    known = (initial >= 0) & (initial < num_slots)
    state = tl.load(pool_ptr + initial * stride_pool_slot + offs_pool, mask=mask_state & known, other=0.0).to(
        tl.float32
    )
    end = tl.load(plan_end_ptr + row, mask=row < last_row, other=0)
    while (row < last_row) & (end == start):
        slot = tl.load(plan_slot_ptr + row)
        tl.store(
            pool_ptr + slot * stride_pool_slot + offs_pool,
            state.to(pool_ptr.dtype.element_ty),
            mask=mask_state,
        )
        row += 1
        end = tl.load(plan_end_ptr + row, mask=row < last_row, other=0)

    chunk = tl.load(first_chunk_ptr + seq).to(tl.int64)
    for first in range(start, stop, CHUNK):
        count = tl.minimum(stop - first, CHUNK).to(tl.int32)
        mask_t = offs_t < count
        if SAVE_H:
            chunk_h_ptr = h_ptr + chunk * stride_h_chunk + head * stride_h_head
            store_tile(chunk_h_ptr, offs_v, offs_k, stride_h_value, stride_h_key, mask_v, mask_k, state)
        chunk_u_ptr = u_ptr + first * stride_u_token
        values = load_tile(chunk_u_ptr, offs_t, offs_v, stride_u_token, stride_u_dim, mask_t, mask_v)
        if DELTA_RULE:
            chunk_w_ptr = w_ptr + first * stride_w_token
            w = load_tile(chunk_w_ptr, offs_t, offs_k, stride_w_token, stride_w_dim, mask_t, mask_k)
            values = values - tl.dot(w, tl.trans(state).to(w.dtype))
        if SAVE_V_NEW:
            chunk_v_ptr = v_new_ptr + head * stride_v_new_head + first * stride_v_new_token
            store_tile(
                chunk_v_ptr, offs_t, offs_v, stride_v_new_token, stride_v_new_dim, mask_t, mask_v, values
            )
        chunk_k_ptr = k_ptr + first * stride_k_token
        chunk_g_ptr = g_ptr + first * stride_g_token
        # One body for the chunk's checkpoints and, last, for its end: a second copy of the dot, or k held
        # over the loop, would spill.
        upcoming = state
        due = last_row >= 0  # true, as a tensor
        while due:
            due = (row < last_row) & (end <= first + count)
            upto = tl.where(due, (end - first).to(tl.int32), count)
            mask_upto = offs_t < upto
            k = load_tile(chunk_k_ptr, offs_k, offs_t, stride_k_dim, stride_k_token, mask_k, mask_upto)
            if PER_KEY:
                g = load_tile(chunk_g_ptr, offs_k, offs_t, stride_g_dim, stride_g_token, mask_k, mask_upto)
                g_end_ptr = chunk_g_ptr + (upto - 1) * stride_g_token + offs_k * stride_g_dim
                g_end = tl.load(g_end_ptr, mask=mask_k, other=0.0).to(tl.float32)
                k = (k * tl.exp2(g_end[:, None] - g)).to(k.dtype)  # k is zero where masked
                decayed = state * tl.exp2(g_end)[None, :]
                scaled = values.to(k.dtype)
            else:
                g = tl.load(chunk_g_ptr + offs_t * stride_g_token, mask=mask_upto, other=0.0).to(tl.float32)
                g_end = tl.load(chunk_g_ptr + (upto - 1) * stride_g_token).to(tl.float32)
                scale = tl.where(mask_upto, tl.exp(g_end - g), 0.0)
                decayed = state * tl.exp(g_end)
                if DELTA_RULE:
                    scaled = (values * scale[:, None]).to(k.dtype)
                else:
                    k = k.to(tl.float32) * scale[None, :]
                    scaled = values.to(tl.float32)
            upcoming = decayed + tl.trans(tl.dot(k, scaled))
            slot = tl.load(plan_slot_ptr + row, mask=due, other=0)
            tl.store(
                pool_ptr + slot * stride_pool_slot + offs_pool,
                upcoming.to(pool_ptr.dtype.element_ty),
                mask=mask_state & due,
            )
            row += due.to(tl.int32)
            end = tl.load(plan_end_ptr + row, mask=row < last_row, other=0)
        state = upcoming
        chunk += 1
    if UPDATE_INITIAL:
        tl.store(
            pool_ptr + initial * stride_pool_slot + offs_pool,
            state.to(pool_ptr.dtype.element_ty),
            mask=mask_state & known,
        )


def launch_config(value_dim: int, key_dim: int, *, small: bool) -> dict[str, int]:
    """16 rows of the state a program, with all its keys: the largest tile that spills on no target at K = 128.

    small: one decay a head with the delta rule, whose tiles fit the registers of 4 warps
    """
    return {
        "BLOCK_V": 16,
        "BLOCK_K": max(16, next_power_of_2(key_dim)),
        "num_warps": 4 if small else 8,
        "num_stages": 1,
    }


def delta_state_pass_triton(
    k: torch.Tensor,
    w: torch.Tensor | None,
    u: torch.Tensor,
    g_cumsum: torch.Tensor,
    cu_seqlens: torch.Tensor,
    plan: GroupedPlan,
    pool: torch.Tensor,
    *,
    initial_indices: torch.Tensor,
    h: torch.Tensor | None = None,
    v_new: torch.Tensor | None = None,
    update_initial: bool = False,
    chunk_offsets: torch.Tensor | None = None,
) -> None:
    """Launch the kernel. Arguments as `delta_state_pass`; nothing is checked here."""
    num_slots, heads, value_dim, key_dim = pool.shape
    per_key = g_cumsum.dim() == 3
    config = launch_config(value_dim, key_dim, small=w is not None and not per_key)
    _delta_state_pass_kernel[(ceil_div(value_dim, config["BLOCK_V"]), cu_seqlens.numel() - 1, heads)](
        k_ptr=k,
        w_ptr=w,
        u_ptr=u,
        g_ptr=g_cumsum,
        h_ptr=h,
        v_new_ptr=v_new,
        pool_ptr=pool,
        cu_seqlens_ptr=cu_seqlens,
        first_chunk_ptr=first_chunks(cu_seqlens) if chunk_offsets is None else chunk_offsets,
        initial_ptr=initial_indices,
        plan_first_ptr=plan.first,
        plan_end_ptr=plan.end,
        plan_slot_ptr=plan.slot,
        value_dim=value_dim,
        key_dim=key_dim,
        heads_per_key_head=heads // k.shape[1],
        num_slots=num_slots,
        **named_strides("k", k, "token", "head", "dim"),
        **named_strides("w", w, "token", "head", "dim"),
        **named_strides("u", u, "token", "head", "dim"),
        **named_strides("g", g_cumsum if per_key else g_cumsum.unsqueeze(2), "token", "head", "dim"),
        **named_strides("h", h, "chunk", "head", "value", "key"),
        **named_strides("v_new", v_new, "token", "head", "dim"),
        **named_strides("pool", pool, "slot", "head", "value", "key"),
        DELTA_RULE=w is not None,
        PER_KEY=per_key,
        SAVE_H=h is not None,
        SAVE_V_NEW=v_new is not None,
        UPDATE_INITIAL=update_initial,
        CHUNK=chunk_tokens(w),
        **config,
    )


def delta_state_pass(
    k: torch.Tensor,
    w: torch.Tensor | None,
    u: torch.Tensor,
    g_cumsum: torch.Tensor,
    cu_seqlens: torch.Tensor,
    plan: GroupedPlan,
    pool: torch.Tensor,
    *,
    initial_indices: torch.Tensor,
    h: torch.Tensor | None = None,
    v_new: torch.Tensor | None = None,
    update_initial: bool = False,
    chunk_offsets: torch.Tensor | None = None,
) -> None:
    """Walk through every sequence and save the planned states.

    k: [T, key heads, K]; w: [T, heads, K], None without the delta rule; u: [T, heads, V] - one dtype
    g_cumsum: summed from each chunk's first token, which has `chunk_tokens(w)`; [T, heads] in natural logs, or
        [T, heads, K] in log2 units
    plan: from `group_by_sequence`; its slots must not be among initial_indices
    pool: [num_slots, heads, V, K], any strides; initial_indices: int[S], below zero: from zeros
    h: [NT, heads, V, K] or None; v_new: [T, heads, V] or None - written where given
    update_initial: whether the final states replace the initial ones, as the engine wants
    chunk_offsets: int[S] or longer, or None - index into h of each sequence's first chunk, if it is at hand

    Mutates: the plan's slots of pool, h, v_new; with update_initial the initial slots.
    Raises: ValueError naming the argument.
    """
    heads, value_dim, key_dim = pool.shape[1:]
    num_tokens, num_seqs = k.shape[0], cu_seqlens.numel() - 1
    for name, tensor, shape in (
        ("w", w, (num_tokens, heads, key_dim)),
        ("u", u, (num_tokens, heads, value_dim)),
        ("g_cumsum", g_cumsum, (num_tokens, heads, key_dim)[: max(2, g_cumsum.dim())]),
        ("initial_indices", initial_indices, (num_seqs,)),
        ("v_new", v_new, (num_tokens, heads, value_dim)),
    ):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name}: expected {list(shape)}, got {list(tensor.shape)}")
    if k.shape[2] != key_dim or heads % k.shape[1]:
        raise ValueError(f"k: expected [tokens, divisor of {heads}, {key_dim}], got {list(k.shape)}")
    if w is None and h is not None:
        raise ValueError("h: without w there are no chunk states")
    for name, tensor in (("w", w), ("u", u)):
        if tensor is not None and tensor.dtype != k.dtype:
            raise ValueError(f"{name}: k, w and u must share a dtype, got {tensor.dtype} beside {k.dtype}")
    if plan.first.numel() != num_seqs + 1:
        raise ValueError(f"plan: grouped for {plan.first.numel() - 1} sequences, but there are {num_seqs}")
    run = delta_state_pass_triton if runs_triton(k) else delta_state_pass_torch
    run(
        k,
        w,
        u,
        g_cumsum,
        cu_seqlens,
        plan,
        pool,
        initial_indices=initial_indices,
        h=h,
        v_new=v_new,
        update_initial=update_initial,
        chunk_offsets=chunk_offsets,
    )
