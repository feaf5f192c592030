"""Batches for the kernel tests: random scan inputs, the scan's intermediates in plain torch, plans.

`scan_inputs` computes dA_cumsum and the passed chunk states itself, in float64 rounded to float32 at the end,
so that the kernels are tested against the definition and not against the code of the scan they serve.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from marconi_kernels.mamba2.ssm_checkpoint import ssm_states_reference
from marconi_kernels.plan import CheckpointPlan


@dataclass
class Batch:
    """Scan inputs of a flattened batch, and what the scan computes from them before checkpoints are taken."""

    x: torch.Tensor  # [T, nheads, headdim]
    B: torch.Tensor  # [T, ngroups, dstate]
    C: torch.Tensor  # [T, ngroups, dstate]
    dt: torch.Tensor  # [T, nheads], after softplus
    A: torch.Tensor  # [nheads]
    cu: list[int]
    chunk_size: int
    init: torch.Tensor | None  # [S, nheads, headdim, dstate]

    @property
    def cu_seqlens(self) -> torch.Tensor:
        return torch.tensor(self.cu, dtype=torch.int32)

    @property
    def seq_idx(self) -> torch.Tensor:
        lengths = torch.tensor([b - a for a, b in zip(self.cu, self.cu[1:], strict=False)])
        return torch.repeat_interleave(torch.arange(len(lengths), dtype=torch.int32), lengths)[None]

    def reference(self, seq: list[int], end: list[int]) -> torch.Tensor:
        return ssm_states_reference(self.x, self.B, self.dt, self.A, self.cu, seq, end, self.init)

    def chunked(self) -> tuple[torch.Tensor, torch.Tensor]:
        """dt and dA_cumsum as float32[nheads, nchunks, Q]; dt is 0 after the last token."""
        num_tokens, nheads = self.dt.shape
        nchunks = -(-num_tokens // self.chunk_size)
        dt = torch.zeros(nchunks * self.chunk_size, nheads, dtype=torch.float64)
        dt[:num_tokens] = self.dt.double()
        dt = dt.t().reshape(nheads, nchunks, self.chunk_size)
        return dt.float(), (dt * self.A.double()[:, None, None]).cumsum(-1).float()

    def chunk_states(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """State before each chunk, of the sequence that owns the token before it (chunk 0: sequence 0)."""
        num_tokens = self.x.shape[0]
        firsts = range(0, num_tokens, self.chunk_size)
        owners = [0] + [max(s for s in range(len(self.cu) - 1) if self.cu[s] < first) for first in firsts[1:]]
        ends = [min(first, self.cu[owner + 1]) for first, owner in zip(firsts, owners, strict=True)]
        return self.reference(owners, ends).to(dtype)


def make_batch(
    lengths: list[int],
    *,
    chunk_size: int = 32,
    nheads: int = 4,
    headdim: int = 16,
    ngroups: int = 2,
    dstate: int = 16,
    with_init: bool = True,
    dtype: torch.dtype = torch.float32,
    decay: float = 1.0,
    seed: int = 0,
) -> Batch:
    """A random batch; `decay` scales A, so 0.01 forgets almost nothing and 50 almost everything at once."""
    gen = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=gen)

    num_tokens = sum(lengths)
    cu = [0]
    for length in lengths:
        cu.append(cu[-1] + length)
    dt = torch.nn.functional.softplus(randn(num_tokens, nheads))
    init = randn(len(lengths), nheads, headdim, dstate) if with_init else None
    return Batch(
        x=randn(num_tokens, nheads, headdim).to(dtype),
        B=randn(num_tokens, ngroups, dstate).to(dtype),
        C=randn(num_tokens, ngroups, dstate).to(dtype),
        dt=dt,
        A=-decay * torch.rand(nheads, generator=gen) - 0.01 * decay,
        cu=cu,
        chunk_size=chunk_size,
        init=init,
    )


def plan_for(
    seq: list[int], end: list[int], *, pad_to: int | None = None, first_slot: int = 1
) -> CheckpointPlan:
    """A plan into slots first_slot, first_slot + 1, …"""
    slots = list(range(first_slot, first_slot + len(seq)))
    return CheckpointPlan.from_lists(seq, end, slots, device="cpu", pad_to=pad_to)


def nan_pool(num_slots: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((num_slots, *shape), float("nan"), dtype=dtype)


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest relative L2 error over the first dimension; exact zeros must be met exactly."""
    difference = (got.double() - want.double()).flatten(1).norm(dim=1)
    size = want.double().flatten(1).norm(dim=1)
    return float(torch.where(size > 0, difference / size.clamp_min(1e-300), difference).max())


def plain_states(batch: Batch, seq: list[int], end: list[int], states: torch.Tensor) -> torch.Tensor:
    """The same partial sums in plain torch at the inputs' precision: the yardstick of the two-times rule."""
    dt, dA = batch.chunked()
    ratio = batch.x.shape[1] // batch.B.shape[1]
    out = []
    for s, stop in zip(seq, end, strict=True):
        start, c = batch.cu[s], max(stop - 1, 0) // batch.chunk_size
        first = c * batch.chunk_size
        lo, hi = max(start - first, 0), stop - first
        last = dA[:, c, hi - 1] if hi > 0 else torch.zeros(dA.shape[0])
        scale = torch.exp(last[:, None] - dA[:, c, lo:hi]) * dt[:, c, lo:hi]  # [nheads, K]
        b = batch.B[first + lo : stop].repeat_interleave(ratio, dim=1) * scale.t()[:, :, None]
        acc = torch.einsum("khp,khn->hpn", batch.x[first + lo : stop], b.to(batch.x.dtype)).float()
        if start < first:
            acc = acc + states[c].float() * torch.exp(last)[:, None, None]
        elif batch.init is not None:
            before = dA[:, c, lo - 1] if lo > 0 else torch.zeros_like(last)
            acc = acc + batch.init[s].float() * torch.exp(last - before)[:, None, None]
        out.append(acc)
    return torch.stack(out)


def assert_two_times_rule(got: torch.Tensor, plain: torch.Tensor, want: torch.Tensor, floor: float) -> None:
    """At most twice the error of plain torch at the same precision, row by row.

    floor: relative error granted in any case (a few roundings of the output's dtype)
    """
    for row in range(len(want)):
        error = relative_error(got[row : row + 1], want[row : row + 1])
        allowed = 2 * relative_error(plain[row : row + 1], want[row : row + 1]) + floor
        assert error <= allowed, f"row {row}: {error:.2e} > {allowed:.2e}"
