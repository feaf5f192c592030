"""A batch of `kernel_cases` through the whole scan: in one pass with checkpoints, or in two without."""

from __future__ import annotations

import torch
from kernel_cases import Batch

from marconi_kernels.mamba2.batch_layout import logical_chunks, sequence_index
from marconi_kernels.mamba2.scan import mamba_chunk_scan_combined
from marconi_kernels.mamba2.two_pass import two_pass_scan


def one_pass(batch: Batch, stages, *, plan=None, pool=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns: outputs [T, nheads, headdim], final states [S, …]. Mutates pool."""
    indices, offsets = logical_chunks(batch.cu, batch.chunk_size) if batch.init is not None else (None, None)
    out = torch.full_like(batch.x, float("nan"))
    varlen = mamba_chunk_scan_combined(
        batch.x[None],
        batch.dt[None],
        batch.A,
        batch.B[None],
        batch.C[None],
        batch.chunk_size,
        initial_states=batch.init,
        seq_idx=sequence_index(batch.cu),
        chunk_indices=indices,
        chunk_offsets=offsets,
        cu_seqlens=batch.cu_seqlens,
        out=out[None],
        return_varlen_states=True,
        state_dtype=torch.float32,
        stages=stages,
        checkpoint_plan=plan,
        checkpoint_pool=pool,
    )
    return out, varlen


def two_passes(batch: Batch, stages, plan, pool) -> tuple[torch.Tensor, torch.Tensor]:
    """As `one_pass`, by prefills that end at the checkpoints."""
    out = torch.full_like(batch.x, float("nan"))
    inputs = (batch.x, batch.dt, batch.A, batch.B, batch.C, batch.chunk_size)
    options = {"cu_seqlens": batch.cu, "plan": plan, "stages": stages, "initial_states": batch.init}
    return out, two_pass_scan(*inputs, pool=pool, out=out, **options)
