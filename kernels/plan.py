"""Which states to save during one prefill pass: N rows of (sequence, end, destination slot).

One plan serves every layer of a forward pass and both kernels (SSM state and conv window). Rows with a slot
below zero are padding, so that a CUDA graph can replay one launch of fixed size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

PADDING_SLOT = -1


@dataclass(frozen=True)
class CheckpointPlan:
    """N checkpoints of a flattened (varlen) batch.

    seq: int32[N] - index of the sequence in cu_seqlens
    end: int64[N] - flat index one past the checkpoint's last token; the state is the one after tokens
        [cu_seqlens[seq], end), so `end == cu_seqlens[seq]` is the state the extend began with
    slot: int64[N] - destination row of the pools; below zero: the row is skipped
    host_rows: the same three columns as tuples, if they are known without asking the device
    """

    seq: torch.Tensor
    end: torch.Tensor
    slot: torch.Tensor
    host_rows: tuple[tuple[int, int, int], ...] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name, dtype in (("seq", torch.int32), ("end", torch.int64), ("slot", torch.int64)):
            column = getattr(self, name)
            if column.dim() != 1 or column.dtype != dtype or column.shape != self.seq.shape:
                raise ValueError(
                    f"{name}: expected {dtype}[{self.seq.numel()}], got {column.dtype}{list(column.shape)}"
                )
            if column.device != self.seq.device:
                raise ValueError(f"{name}: on {column.device}, but seq is on {self.seq.device}")
            if not column.is_contiguous():
                raise ValueError(f"{name}: must be contiguous")

    @classmethod
    def from_lists(
        cls,
        seq: Sequence[int],
        end: Sequence[int],
        slot: Sequence[int],
        *,
        device: torch.device | str,
        pad_to: int | None = None,
    ) -> CheckpointPlan:
        """Build a plan from host lists, with padding rows up to `pad_to`.

        Raises: ValueError if the lists' lengths differ or exceed `pad_to`.
        """
        n = len(seq)
        if len(end) != n:
            raise ValueError(f"end: {len(end)} entries, but seq has {n}")
        if len(slot) != n:
            raise ValueError(f"slot: {len(slot)} entries, but seq has {n}")
        size = n if pad_to is None else pad_to
        if size < n:
            raise ValueError(f"pad_to: {size} is less than the {n} checkpoints")
        pad = size - n
        seq, end, slot = [*seq, *[0] * pad], [*end, *[0] * pad], [*slot, *[PADDING_SLOT] * pad]
        return cls(
            torch.tensor(seq, dtype=torch.int32, device=device),
            torch.tensor(end, dtype=torch.int64, device=device),
            torch.tensor(slot, dtype=torch.int64, device=device),
            tuple(zip(seq, end, slot, strict=True)),
        )

    def __len__(self) -> int:
        return self.seq.numel()

    @property
    def device(self) -> torch.device:
        return self.seq.device

    def rows(self) -> tuple[tuple[int, int, int], ...]:
        """(seq, end, slot) on the host; waits for the device if the plan was built from tensors there."""
        if self.host_rows is not None:
            return self.host_rows
        return tuple(zip(self.seq.tolist(), self.end.tolist(), self.slot.tolist(), strict=True))

    def validate(self, cu_seqlens: Sequence[int], num_slots: int) -> None:
        """Check every live row against the batch and the pool.

        cu_seqlens: S+1 flat offsets on the host (tokens); num_slots: rows of the pool.
        Raises: ValueError naming seq, end or slot. Two rows may share a position, but not a slot.
        """
        taken: set[int] = set()
        num_seqs = len(cu_seqlens) - 1
        for row, (seq, end, slot) in enumerate(self.rows()):
            if slot < 0:
                continue
            if slot >= num_slots:
                raise ValueError(f"slot: row {row} has {slot}, but the pool has {num_slots} slots")
            if slot in taken:
                raise ValueError(f"slot: row {row} writes slot {slot} a second time")
            taken.add(slot)
            if not 0 <= seq < num_seqs:
                raise ValueError(f"seq: row {row} has {seq}, but the batch has {num_seqs} sequences")
            if not cu_seqlens[seq] <= end <= cu_seqlens[seq + 1]:
                raise ValueError(
                    f"end: row {row} has {end}, outside its sequence's tokens "
                    f"[{cu_seqlens[seq]}, {cu_seqlens[seq + 1]}]"
                )
