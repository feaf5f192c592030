"""The baseline: exact states by splitting the prefill at every checkpoint.

Each sequence is prefilled up to its first checkpoint, the state is saved, and the prefill continues from it:
what an engine without checkpoint kernels does to get a state at an arbitrary token. It is the yardstick of
the tests (same states, same outputs) and of the benchmarks (one more scan for each checkpoint).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from marconi_kernels.mamba2.batch_layout import logical_chunks, sequence_index
from marconi_kernels.mamba2.scan import ScanStages, mamba_chunk_scan_combined
from marconi_kernels.plan import CheckpointPlan


def two_pass_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int,
    *,
    cu_seqlens: Sequence[int],
    plan: CheckpointPlan,
    pool: torch.Tensor,
    out: torch.Tensor,
    stages: ScanStages,
    D: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
    initial_states: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scan a batch in rounds; round r runs each sequence's tokens between its checkpoints r-1 and r.

    x, out: [T, nheads, headdim]; dt: [T, nheads]; A, D, dt_bias: [nheads]; B, C: [T, ngroups, dstate]
    cu_seqlens: S+1 flat offsets (tokens) on the host
    pool: [num_slots, nheads, headdim, dstate]; also the dtype in which states are carried between rounds
    initial_states: [S, nheads, headdim, dstate] or None

    Returns: pool.dtype[S, nheads, headdim, dstate] - the states after each sequence's last token.
    Mutates: out, and the plan's slots of pool.
    Raises: ValueError naming the argument.
    """
    plan.validate(cu_seqlens, pool.shape[0])
    num_seqs = len(cu_seqlens) - 1
    rows = [(seq, end, slot) for seq, end, slot in plan.rows() if slot >= 0]
    cuts = [
        sorted({cu_seqlens[s], cu_seqlens[s + 1], *(e for q, e, _ in rows if q == s)})
        for s in range(num_seqs)
    ]
    carried = x.new_zeros((num_seqs, x.shape[1], x.shape[2], B.shape[2]), dtype=pool.dtype)
    if initial_states is not None:
        carried.copy_(initial_states)
    _save(carried, {(s, cu_seqlens[s]) for s in range(num_seqs)}, rows, pool)

    for r in range(max(len(c) for c in cuts) - 1):
        parts = [(s, cuts[s][r], cuts[s][r + 1]) for s in range(num_seqs) if r + 1 < len(cuts[s])]
        owners = [s for s, _, _ in parts]
        tokens = torch.cat([torch.arange(a, b, device=x.device) for _, a, b in parts])
        cu = [0]
        for _, a, b in parts:
            cu.append(cu[-1] + b - a)
        starts_empty = initial_states is None and r == 0
        indices, offsets = (None, None) if starts_empty else logical_chunks(cu, chunk_size, x.device)
        part_out = out.new_empty(1, cu[-1], *out.shape[1:])
        carried[owners] = mamba_chunk_scan_combined(
            x[tokens][None],
            dt[tokens][None],
            A,
            B[tokens][None],
            C[tokens][None],
            chunk_size,
            D=D,
            dt_bias=dt_bias,
            dt_softplus=dt_softplus,
            initial_states=None if starts_empty else carried[owners],
            seq_idx=sequence_index(cu, x.device),
            chunk_indices=indices,
            chunk_offsets=offsets,
            cu_seqlens=torch.tensor(cu, dtype=torch.int32, device=x.device),
            out=part_out,
            return_varlen_states=True,
            state_dtype=pool.dtype,
            stages=stages,
        )
        out[tokens] = part_out[0]
        _save(carried, {(s, b) for s, _, b in parts}, rows, pool)
    return carried


def _save(
    carried: torch.Tensor,
    reached: set[tuple[int, int]],
    rows: Sequence[tuple[int, int, int]],
    pool: torch.Tensor,
) -> None:
    """Copy the carried states of the (sequence, end) pairs just reached into their checkpoints' slots."""
    for seq, end, slot in rows:
        if (seq, end) in reached:
            pool[slot] = carried[seq]
