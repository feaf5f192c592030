"""The scan's view of a flattened batch: owner of each token, and logical chunks where sequences meet.

A logical chunk is a run of tokens of one sequence inside one physical chunk; the scan's stages want its
physical chunk and the offset where it starts.
Source of the layout: SGLang 0.5.23, Mamba2Metadata._query_start_loc_to_chunk_indices_offsets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def sequence_index(cu_seqlens: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
    """int32[1, T]: the sequence that owns each flat token. cu_seqlens: S+1 host offsets (tokens)."""
    lengths = torch.tensor(cu_seqlens, device=device).diff()
    owners = torch.arange(len(lengths), dtype=torch.int32, device=device)
    return owners.repeat_interleave(lengths, output_size=cu_seqlens[-1]).unsqueeze(0)


def logical_chunks(
    cu_seqlens: Sequence[int], chunk_size: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """int32[L] each: physical chunk and starting offset (tokens) of every logical chunk."""
    total = cu_seqlens[-1]
    starts_list = sorted({*range(0, total, chunk_size), *(c for c in cu_seqlens if c < total)})
    starts = torch.tensor(starts_list, dtype=torch.int32, device=device)
    return starts // chunk_size, starts % chunk_size
