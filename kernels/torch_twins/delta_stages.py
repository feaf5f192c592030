"""The stages of a delta rule's chunked prefill in torch, cut as SGLang's Triton pipeline is (0.5.23,
`kernels.ops.attention.fla`): decay sums, the solve inside each chunk, the pass through the states, the outputs.

The chunk grid restarts with each sequence: chunk c holds tokens [start + 64c, start + 64(c+1)). All tensors are fp32;
decays are one a head in natural logs, or one a key channel in log2 units, as the engine's two pipelines keep them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F

from marconi_kernels.delta_rule.ssm_checkpoint import CHUNK_SIZE, first_chunks
from marconi_kernels.delta_rule.state_pass import delta_state_pass_torch


@dataclass(frozen=True)
class ChunkGrid:
    """Where a ragged batch's tokens lie in its chunks.

    indices: int[NT, 2], (sequence, chunk of the sequence), as SGLang's `prepare_chunk_indices` gives them
    tokens: int64[NT, 64], flat; `count` where a chunk has no token there
    """

    indices: torch.Tensor
    tokens: torch.Tensor
    count: int

    def take(self, flat: torch.Tensor) -> torch.Tensor:
        """[T, H, …] -> [NT, H, 64, …]; zeros where there is no token."""
        padded = F.pad(flat, (0, 0) * (flat.dim() - 1) + (0, 1))
        return padded[self.tokens].transpose(1, 2)

    def put(self, chunks: torch.Tensor) -> torch.Tensor:
        """The reverse of `take`."""
        chunks = chunks.transpose(1, 2)
        flat = chunks.new_zeros(self.count + 1, *chunks.shape[2:])
        flat[self.tokens] = chunks
        return flat[:-1]


def chunk_grid(cu_seqlens: torch.Tensor) -> ChunkGrid:
    """cu_seqlens: int[S+1]"""
    starts = cu_seqlens.tolist()
    rows = [
        (seq, chunk, begin, min(begin + CHUNK_SIZE, stop))
        for seq, (start, stop) in enumerate(pairwise(starts))
        for chunk, begin in enumerate(range(start, stop, CHUNK_SIZE))
    ]
    count = starts[-1]
    begins = torch.tensor([row[2] for row in rows], dtype=torch.int64).unsqueeze(1)
    stops = torch.tensor([row[3] for row in rows], dtype=torch.int64).unsqueeze(1)
    tokens = begins + torch.arange(CHUNK_SIZE)
    indices = torch.tensor([row[:2] for row in rows], dtype=cu_seqlens.dtype).reshape(-1, 2)
    return ChunkGrid(indices, torch.where(tokens < stops, tokens, count), count)


def decay_sums(g: torch.Tensor, grid: ChunkGrid) -> torch.Tensor:
    """Log decays [T, H] or [T, H, K], summed from each chunk's first token."""
    per_key = g.dim() == 3
    total = grid.put(grid.take(g if per_key else g.unsqueeze(2)).cumsum(2))
    return total if per_key else total.squeeze(2)


def _power(total: torch.Tensor, grid: ChunkGrid) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums by chunk in natural logs, [NT, H, 64, K or 1], and the mask of pairs (i, j) with j after i."""
    per_key = total.dim() == 3
    chunks = grid.take(total * torch.log(torch.tensor(2.0)) if per_key else total.unsqueeze(2))
    return chunks, torch.ones(CHUNK_SIZE, CHUNK_SIZE, dtype=torch.bool, device=total.device).triu(1)


def solve(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    total: torch.Tensor,
    beta: torch.Tensor,
    grid: ChunkGrid,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The delta rule's factors, and how each token sees its chunk.

    q, k: [T, key heads, K], scaled and normalised; v: [T, H, V]; total: of `decay_sums`; beta: [T, H]
    Returns: w [T, H, K], u [T, H, V], scores [NT, H, 64, 64].
    """
    heads = v.shape[1]
    q, k = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (q, k))
    since, ahead = _power(total, grid)
    q, k, v, beta = map(grid.take, (q, k, v, beta.unsqueeze(2)))
    if total.dim() == 3:
        span = since.unsqueeze(3) - since.unsqueeze(2)  # [NT, H, i, j, K]; above zero only where j > i
        decay = span.masked_fill_(ahead[..., None], 0.0).exp_()
        keys = torch.einsum("chik,chijk,chjk->chij", k, decay, k)
        scores = torch.einsum("chik,chijk,chjk->chij", q, decay, k)
    else:
        decay = (since - since.transpose(2, 3)).masked_fill_(ahead, 0.0).exp_()
        keys, scores = (k @ k.transpose(2, 3)) * decay, (q @ k.transpose(2, 3)) * decay
    coupling = (keys * beta).masked_fill_(ahead, 0.0)
    coupling.diagonal(dim1=2, dim2=3).fill_(1.0)
    right = torch.cat([k * since.exp() * beta, v * beta], dim=3)
    solved = torch.linalg.solve_triangular(coupling, right, upper=False, unitriangular=True)
    w, u = solved.split([k.shape[3], v.shape[3]], dim=3)
    return grid.put(w), grid.put(u), scores.masked_fill_(ahead, 0.0)


def keys_at_chunk_ends(k: torch.Tensor, total: torch.Tensor, grid: ChunkGrid) -> torch.Tensor:
    """k [T, H, K] · 2^(sum at its chunk's last token − sum): what the engine's state pass takes of KDA's keys."""
    last = grid.tokens.masked_fill(grid.tokens == grid.count, -1).amax(1)
    scaled = grid.take(k) * torch.exp2(total[last].unsqueeze(2) - grid.take(total))
    return grid.put(scaled)


def outputs(
    q: torch.Tensor,
    v_new: torch.Tensor,
    total: torch.Tensor,
    scores: torch.Tensor,
    h: torch.Tensor,
    grid: ChunkGrid,
) -> torch.Tensor:
    """[T, H, V], from the states before each chunk and what the chunk itself adds. q: [T, key heads, K], scaled"""
    q = grid.take(q.repeat_interleave(v_new.shape[1] // q.shape[1], dim=1))
    since, _ = _power(total, grid)
    return grid.put((q * since.exp()) @ h.transpose(2, 3) + scores @ grid.take(v_new))


# ---- under the names and with the arguments of SGLang's own stages ----


def chunk_gated_delta_rule_fwd_h(
    k,
    w,
    u,
    g=None,
    gk=None,
    initial_state=None,
    initial_state_indices=None,
    save_new_value=True,
    cu_seqlens=None,
    chunk_indices=None,
    use_exp2=False,
    inplace_update=True,
    track_state=None,
    track_chunk_idx=None,
    chunk_offsets=None,
):
    """The pass through the states. k, w: [1, T, ·, K]; u: [1, T, H, V]; g: [1, T, H], or gk: [1, T, H, K] in log2 units
    with k scaled to its chunk's end; initial_state: the pool. track_state: as SGLang's, the state before a chunk.
    Mutates initial_state, track_state. Returns h [1, NT, H, V, K] and v_new [1, T, H, V].
    Raises: NotImplementedError for what SGLang's backends don't ask for."""
    if not save_new_value or cu_seqlens is None or initial_state is None or (gk is not None) != use_exp2:
        raise NotImplementedError("the torch state pass takes ragged batches and a pool of states")
    chunks = chunk_grid(cu_seqlens).indices if chunk_indices is None else chunk_indices
    h = k.new_empty(len(chunks), u.shape[2], u.shape[3], k.shape[3])
    v_new = torch.empty_like(u)
    delta_state_pass_torch(
        k[0],
        w[0],
        u[0],
        (g if gk is None else gk)[0],
        cu_seqlens,
        None,
        initial_state,
        initial_indices=initial_state_indices,
        h=h,
        v_new=v_new[0],
        update_initial=inplace_update,
        keys_at_chunk_end=gk is not None,
    )
    if track_state is not None:
        first = first_chunks(cu_seqlens).tolist()
        for row, chunk in enumerate(track_chunk_idx.tolist()):
            if chunk >= 0:
                track_state[row] = h[first[row] + chunk]
    return h.unsqueeze(0), v_new


def chunk_kda_fwd_intra(
    q,
    k,
    v,
    gk=None,
    beta=None,
    scale=None,
    cu_seqlens=None,
    chunk_size=CHUNK_SIZE,
    chunk_indices=None,
    safe_gate=False,
    fuse_recompute=False,
    fuse_diagonal=False,
):
    """The solve of Kimi Delta Attention. q, k: [1, T, H, K], normalised; gk: log2 sums. Returns w, u, None, the keys at
    their chunks' ends, scores [NT, H, 64, 64], None."""
    grid = chunk_grid(cu_seqlens)
    w, u, scores = solve(q[0] * scale, k[0], v[0], gk[0], beta[0], grid)
    ends = keys_at_chunk_ends(k[0], gk[0], grid)
    return w.unsqueeze(0), u.unsqueeze(0), None, ends.unsqueeze(0), scores, None
