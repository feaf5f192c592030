"""Lightning attention in vectorised torch: twin of SGLang's `seg_la_fwd` (0.5.23), for machines without a GPU.

    S_t = exp(−slope) · S_{t−1} + k_tᵀ v_t,    o_t = scale · q_t S_t

The decay is fixed a head; the pool keeps states keys first, `[slots, H, K, V]`.
"""

from __future__ import annotations

import torch

CHUNK_TOKENS = 64


def lightning_prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    state: torch.Tensor,
    chunk_ends: dict[int, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One sequence, in chunks of 64 tokens that begin at its first.

    q, k: fp32[T, H, K], q scaled; v: fp32[T, H, V]; slopes: fp32[H], above zero; state: fp32[H, K, V], left as it is;
    chunk_ends: gets the state after each chunk, by its tokens so far.
    Returns: outputs fp32[T, H, V], and the state after the last token.
    """
    outputs = torch.empty_like(v)
    for start in range(0, q.shape[0], CHUNK_TOKENS):
        span = slice(start, start + CHUNK_TOKENS)
        queries, keys, values = (x[span].transpose(0, 1) for x in (q, k, v))  # [H, t, ·]
        tokens = queries.shape[1]
        place = torch.arange(1, tokens + 1, dtype=torch.float32, device=q.device)
        since = (-slopes[:, None] * place).exp()  # [H, t]: decay from the chunk's start through this token
        until = (-slopes[:, None] * (tokens - place)).exp()
        gap = (place[:, None] - place[None, :]).clamp(min=0)
        seen = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril()
        scores = (queries @ keys.transpose(1, 2)) * (-slopes[:, None, None] * gap).exp() * seen
        rows = scores @ values + (queries * since[..., None]) @ state
        outputs[span] = rows.transpose(0, 1)
        state = state * since[:, -1:, None] + (keys * until[..., None]).transpose(1, 2) @ values
        if chunk_ends is not None:
            chunk_ends[start + tokens] = state
    return outputs, state


def seg_la_fwd(
    q,
    k,
    v,
    s,
    decay_scales,
    meta,
    caches=None,
    cache_indices=None,
    track_lens=None,
    track_state_indices=None,
    softmax_scale=None,
):
    """Prefill, decode where there is one token a sequence, or with `caches` the verification of chains of drafts.

    q, k, v: [T, H, D]; s: [slots, H, D, D]; decay_scales: H slopes; meta: SGLang's SegLaMeta, whose s_scales say which
    sequences begin with their slot's state; a slot of −1 is padding. track_lens, track_state_indices: the state after
    so many tokens, a multiple of the chunk, goes to that slot too (0 or −1: none). caches: [rows, steps, H, D, D] gets
    the states after each draft at `cache_indices`, int[N], and s stays as it is then; else s is mutated.
    Returns [T, H, D].
    Raises: NotImplementedError for trees of drafts.
    """
    if meta.mask is not None:
        raise NotImplementedError(
            "the torch lightning attention takes prefills, decodes and chains of drafts"
        )
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    slopes = decay_scales.reshape(-1).float()
    if caches is not None:
        return _verify(q, k, v, s, slopes, meta.s_offsets, scale, caches, cache_indices)
    if q.shape[0] <= meta.batch_size:
        return _step(q, k, v, s, slopes, meta.s_offsets, scale)
    out = torch.zeros_like(v)
    starts = meta.q_offsets.tolist()
    rows = zip(starts[:-1], starts[1:], meta.s_offsets.tolist(), meta.s_scales.tolist(), strict=False)
    for row, (start, stop, slot, warm) in enumerate(rows):
        if stop > start and slot >= 0:
            span = slice(start, stop)
            state = s[slot].float() if warm else torch.zeros_like(s[slot], dtype=torch.float32)
            ends: dict[int, torch.Tensor] | None = None if track_lens is None else {}
            part, state = lightning_prefill(
                q[span].float() * scale, k[span].float(), v[span].float(), slopes, state, ends
            )
            out[span], s[slot] = part.to(out.dtype), state.to(s.dtype)
            if ends is not None and int(track_state_indices[row]) >= 0 and int(track_lens[row]) > 0:
                s[int(track_state_indices[row])] = ends[int(track_lens[row])].to(s.dtype)
    return out


def _step(q, k, v, s, slopes, slots, scale):
    """One token a sequence."""
    slots = slots.long()
    real = slots >= 0
    state = s[slots.clamp(min=0)].float() * (-slopes).exp()[:, None, None]
    state += k.float().unsqueeze(-1) * v.float().unsqueeze(-2)
    out = ((q.float() * scale).unsqueeze(-2) @ state).squeeze(-2)
    if not bool(real.all()):
        out, slots, state = out * real[:, None, None], slots[real], state[real]
    s[slots] = state.to(s.dtype)
    return out.to(v.dtype)


def _verify(q, k, v, s, slopes, slots, scale, caches, rows):
    """A chain of T / N drafts a sequence; the state after each goes to `caches`."""
    count = len(slots)
    queries, keys, values = (x.unflatten(0, (count, -1)).float() for x in (q, k, v))
    state, out = s[slots.long().clamp(min=0)].float(), torch.empty_like(values)
    decay = (-slopes).exp()[:, None, None]
    for step in range(queries.shape[1]):
        state = state * decay + keys[:, step].unsqueeze(-1) * values[:, step].unsqueeze(-2)
        out[:, step] = ((queries[:, step] * scale).unsqueeze(-2) @ state).squeeze(-2)
        caches[rows.long(), step] = state.to(caches.dtype)
    return out.flatten(0, 1).to(v.dtype)
