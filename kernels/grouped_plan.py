"""A plan sorted for kernels that walk through each sequence once and save states as they pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from marconi_kernels.plan import CheckpointPlan


@dataclass(frozen=True)
class GroupedPlan:
    """The live rows of a plan, by sequence and then by end. Built once a forward pass, for all layers.

    first: int32[S+1] - rows first[s] to first[s+1] belong to sequence s
    end, slot: int64[N]
    """

    first: torch.Tensor
    end: torch.Tensor
    slot: torch.Tensor

    def host_rows(self) -> tuple[list[int], list[int], list[int]]:
        """first, end and slot as lists; on a GPU this waits for the device."""
        return self.first.tolist(), self.end.tolist(), self.slot.tolist()

    @property
    def device(self) -> torch.device:
        return self.end.device


def group_by_sequence(plan: CheckpointPlan, cu_seqlens: torch.Tensor, num_slots: int) -> GroupedPlan:
    """Sort a plan on its device, without waiting for it. Rows that are padding or out of range sort last.

    cu_seqlens: int[S+1] flat offsets (tokens); num_slots: rows of the pool
    """
    num_seqs = cu_seqlens.numel() - 1
    known = (plan.slot >= 0) & (plan.slot < num_slots) & (plan.seq >= 0) & (plan.seq < num_seqs)
    seq = torch.where(known, plan.seq, 0).long()
    known &= (plan.end >= cu_seqlens[seq]) & (plan.end <= cu_seqlens[seq + 1])
    seq = torch.where(known, seq, num_seqs)
    by_end = torch.argsort(plan.end, stable=True)
    order = by_end[torch.argsort(seq[by_end], stable=True)]
    owners = torch.arange(num_seqs + 1, device=plan.device)
    first = torch.searchsorted(seq[order], owners).to(torch.int32)
    return GroupedPlan(first, plan.end[order], plan.slot[order])
