"""Save Gated DeltaNet states at any tokens of a prefill from its chunk states, in one launch.

Here the chunk grid restarts with each sequence: chunk c of sequence s holds tokens [start + cQ, start + (c+1)Q),
Q = 64, and `g_cumsum` restarts at each chunk. With h[c] the state before the chunk and v_new the values left
after the delta rule (both are intermediates of the prefill), the state after `end` in chunk c is

    h[c] · exp(g[end-1]) + sum_k exp(g[end-1] - g[k]) · v_new_k ⊗ k_k      for k in the chunk, k < end

because v_new of a token depends on earlier tokens only.

Numerics: as exact as h and v_new. The engine stores both in the activations' dtype (bf16), while a prefill that
ends at the checkpoint keeps its state in fp32: what is saved here differs from what that prefill saves by up to
3e-3 (relative L2), and a 0-token checkpoint gives the initial state rounded to bf16. With fp32 h and v_new the
result is exact to 4e-7. Where the bits of a two-pass prefill matter, `delta_state_pass` is the way.
Source of the layout: SGLang 0.5.23, kernels/ops/attention/fla/chunk_delta_h.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from marconi_kernels.checks import check_gdn_arguments
from marconi_kernels.dispatch import runs_triton
from marconi_kernels.launch import ceil_div, named_strides, next_power_of_2
from marconi_kernels.plan import CheckpointPlan
from marconi_kernels.tiles import load_row, load_tile, store_tile

CHUNK_SIZE = 64


def gdn_states_reference(
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    cu_seqlens: Sequence[int],
    seq: Sequence[int],
    end: Sequence[int],
    initial_states: torch.Tensor | None = None,
) -> torch.Tensor:
    """The definition, token by token in float64: h ← exp(g_t) h, then h ← h + β_t (v_t - h k_t) ⊗ k_t.

    k: [T, key heads, K]; v: [T, heads, V]; g (log decay): [T, heads], or [T, heads, K] for Kimi Delta Attention;
    beta: [T, heads]; initial_states: [S, heads, V, K]
    Returns: float64[N, heads, V, K]
    """
    heads = v.shape[1]
    k = k.double().repeat_interleave(heads // k.shape[1], dim=1)
    v, g, beta = v.double(), g.double(), beta.double()
    out = k.new_empty(len(seq), heads, v.shape[2], k.shape[2])
    for n, (s, stop) in enumerate(zip(seq, end, strict=True)):
        h = torch.zeros_like(out[n]) if initial_states is None else initial_states[s].double()
        for t in range(cu_seqlens[s], stop):
            h = torch.exp(g[t]).reshape(heads, 1, -1) * h
            left = v[t] - torch.einsum("hvk,hk->hv", h, k[t])
            h = h + (beta[t][:, None] * left)[:, :, None] * k[t][:, None, :]
        out[n] = h
    return out


def first_chunks(cu_seqlens: torch.Tensor) -> torch.Tensor:
    """int64[S]: index into h of each sequence's first chunk."""
    chunks = (cu_seqlens.diff() + CHUNK_SIZE - 1) // CHUNK_SIZE
    return chunks.cumsum(0) - chunks


def save_gdn_checkpoints_torch(
    k: torch.Tensor,
    v_new: torch.Tensor,
    g_cumsum: torch.Tensor,
    h: torch.Tensor,
    cu_seqlens: torch.Tensor,
    plan: CheckpointPlan,
    pool: torch.Tensor,
    *,
    chunk_offsets: torch.Tensor | None = None,
) -> None:
    """The same result in vectorised torch. Arguments as `save_gdn_checkpoints`."""
    cu = cu_seqlens.tolist()
    chunk_of = (first_chunks(cu_seqlens) if chunk_offsets is None else chunk_offsets).tolist()
    heads = v_new.shape[1]
    for seq, end, slot in plan.rows():
        if slot < 0:
            continue
        c = max(end - cu[seq] - 1, 0) // CHUNK_SIZE
        tokens = slice(cu[seq] + c * CHUNK_SIZE, end)
        carry = h[chunk_of[seq] + c].float()
        if end > tokens.start:
            g = g_cumsum[tokens].float().t()  # [heads, tokens]
            values = v_new[tokens].float().permute(1, 2, 0) * torch.exp(g[:, -1:] - g)[:, None]
            keys = k[tokens].float().transpose(0, 1).repeat_interleave(heads // k.shape[1], dim=0)
            carry = torch.baddbmm(carry * torch.exp(g[:, -1])[:, None, None], values, keys)
        pool[slot] = carry.to(pool.dtype)


@triton.jit
def _gdn_checkpoint_kernel(
    # pointers
    k_ptr,
    v_ptr,
    g_ptr,
    h_ptr,
    pool_ptr,
    cu_seqlens_ptr,
    first_chunk_ptr,
    seq_ptr,
    end_ptr,
    slot_ptr,
    # sizes
    value_dim,
    key_dim,
    heads_per_key_head,
    num_seqs,
    num_slots,
    num_tokens,
    # strides
    stride_k_token,
    stride_k_head,
    stride_k_dim,
    stride_v_token,
    stride_v_head,
    stride_v_dim,
    stride_g_token,
    stride_g_head,
    stride_h_chunk,
    stride_h_head,
    stride_h_value,
    stride_h_key,
    stride_pool_slot,
    stride_pool_head,
    stride_pool_value,
    stride_pool_key,
    CHUNK: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tiles_k = (key_dim + BLOCK_K - 1) // BLOCK_K
    row = tl.program_id(1)
    head = tl.program_id(2).to(tl.int64)
    seq, end, slot, start, stop, live = load_row(
        row, seq_ptr, end_ptr, slot_ptr, cu_seqlens_ptr, num_seqs, num_slots, num_tokens
    )
    if not (live & (start < stop)):  # a sequence of no tokens has no chunk states
        return

    chunk = tl.maximum(end - start - 1, 0) // CHUNK
    first = start + chunk * CHUNK
    count = (end - first).to(tl.int32)
    offs_v = (tl.program_id(0) // tiles_k) * BLOCK_V + tl.arange(0, BLOCK_V)
    offs_k = (tl.program_id(0) % tiles_k) * BLOCK_K + tl.arange(0, BLOCK_K)
    offs_t = tl.arange(0, CHUNK)
    mask_v, mask_k, mask_t = offs_v < value_dim, offs_k < key_dim, offs_t < count

    g_ptr += first * stride_g_token + head * stride_g_head
    g_end = tl.load(g_ptr + (count - 1) * stride_g_token, mask=count > 0, other=0.0).to(tl.float32)
    g = tl.load(g_ptr + offs_t * stride_g_token, mask=mask_t, other=0.0).to(tl.float32)
    v_ptr += first * stride_v_token + head * stride_v_head
    k_ptr += first * stride_k_token + (head // heads_per_key_head) * stride_k_head
    v = load_tile(v_ptr, offs_v, offs_t, stride_v_dim, stride_v_token, mask_v, mask_t)
    k = load_tile(k_ptr, offs_t, offs_k, stride_k_token, stride_k_dim, mask_t, mask_k)
    scale = tl.where(mask_t, tl.exp(g_end - g), 0.0)
    values = (v.to(tl.float32) * scale[None, :]).to(k.dtype)
    state = tl.dot(values, k)

    index = tl.load(first_chunk_ptr + seq).to(tl.int64) + chunk
    h_ptr += index * stride_h_chunk + head * stride_h_head
    carry = load_tile(h_ptr, offs_v, offs_k, stride_h_value, stride_h_key, mask_v, mask_k).to(tl.float32)
    state += carry * tl.exp(g_end)
    pool_ptr += slot * stride_pool_slot + head * stride_pool_head
    store_tile(pool_ptr, offs_v, offs_k, stride_pool_value, stride_pool_key, mask_v, mask_k, state)


def launch_config(value_dim: int, key_dim: int) -> dict[str, int]:
    """64×64 tiles over a whole 64-token chunk: one dot, no loop, so nothing to pipeline."""

    def fit(size: int) -> int:
        return max(16, min(64, next_power_of_2(size)))

    return {"BLOCK_V": fit(value_dim), "BLOCK_K": fit(key_dim), "num_warps": 4, "num_stages": 1}


def save_gdn_checkpoints_triton(
    k: torch.Tensor,
    v_new: torch.Tensor,
    g_cumsum: torch.Tensor,
    h: torch.Tensor,
    cu_seqlens: torch.Tensor,
    plan: CheckpointPlan,
    pool: torch.Tensor,
    *,
    chunk_offsets: torch.Tensor | None = None,
) -> None:
    """Launch the kernel. Arguments as `save_gdn_checkpoints`; nothing is checked here."""
    num_slots, heads, value_dim, key_dim = pool.shape
    config = launch_config(value_dim, key_dim)
    tiles = ceil_div(value_dim, config["BLOCK_V"]) * ceil_div(key_dim, config["BLOCK_K"])
    _gdn_checkpoint_kernel[(tiles, len(plan), heads)](
        k_ptr=k,
        v_ptr=v_new,
        g_ptr=g_cumsum,
        h_ptr=h,
        pool_ptr=pool,
        cu_seqlens_ptr=cu_seqlens,
        first_chunk_ptr=first_chunks(cu_seqlens) if chunk_offsets is None else chunk_offsets,
        seq_ptr=plan.seq,
        end_ptr=plan.end,
        slot_ptr=plan.slot,
        value_dim=value_dim,
        key_dim=key_dim,
        heads_per_key_head=heads // k.shape[1],
        num_seqs=cu_seqlens.numel() - 1,
        num_slots=num_slots,
        num_tokens=k.shape[0],
        **named_strides("k", k, "token", "head", "dim"),
        **named_strides("v", v_new, "token", "head", "dim"),
        **named_strides("g", g_cumsum, "token", "head"),
        **named_strides("h", h, "chunk", "head", "value", "key"),
        **named_strides("pool", pool, "slot", "head", "value", "key"),
        CHUNK=CHUNK_SIZE,
        **config,
    )


def save_gdn_checkpoints(
    k: torch.Tensor,
    v_new: torch.Tensor,
    g_cumsum: torch.Tensor,
    h: torch.Tensor,
    cu_seqlens: torch.Tensor,
    plan: CheckpointPlan,
    pool: torch.Tensor,
    *,
    chunk_offsets: torch.Tensor | None = None,
) -> None:
    """Save the GDN state of every live row of `plan` into its slot of `pool`.

    k: [T, key heads, K] - normalised keys, as the chunk kernels saw them
    v_new: [T, heads, V] - k's dtype; g_cumsum: [T, heads] - log decay summed inside each 64-token chunk
    h: [NT, heads, V, K] - state before each chunk, of all sequences one after the other
    pool: [num_slots, heads, V, K] - float32, bfloat16 or float16, any strides; one layer
    chunk_offsets: int[S] or longer, or None - index into h of each sequence's first chunk, if it is at hand

    Mutates: the live rows' slots of pool. Raises: ValueError naming the argument.
    """
    check_gdn_arguments(k, v_new, g_cumsum, cu_seqlens, plan, pool)
    if h.dim() != 4 or h.shape[1:] != pool.shape[1:]:
        raise ValueError(f"h: expected [NT, *{list(pool.shape[1:])}], got {list(h.shape)}")
    if len(plan) == 0:
        return
    save = save_gdn_checkpoints_triton if runs_triton(k) else save_gdn_checkpoints_torch
    save(k, v_new, g_cumsum, h, cu_seqlens, plan, pool, chunk_offsets=chunk_offsets)
