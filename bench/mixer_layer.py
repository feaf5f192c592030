"""One Mamba2 mixer layer, as an engine runs it in a prefill: projections, conv, scan, pools of states.

Three ways to prefill one prompt, each in extends of bounded length: without checkpoints, with exact checkpoints
in the same pass, and in several passes (prefill to a checkpoint, copy the running state, continue). Stages and
conv are SGLang's Triton functions on a GPU, and our torch twins on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from marconi_ext.profiles.shapes import ModelShape
from marconi_kernels.mamba2.batch_layout import logical_chunks, sequence_index
from marconi_kernels.mamba2.conv_checkpoint import save_conv_checkpoints
from marconi_kernels.mamba2.scan import ScanStages, mamba_chunk_scan_combined
from marconi_kernels.plan import CheckpointPlan

RUNNING = 0  # the slot of the request's running state; checkpoints go to the slots after it


@dataclass
class MixerLayer:
    """Random weights of a layer of `shape` with residual width `hidden`, and its two pools."""

    shape: ModelShape
    hidden: int
    slots: int
    device: str
    dtype: torch.dtype
    stages: ScanStages
    conv: Callable[..., torch.Tensor]
    seed: int = 0

    def __post_init__(self) -> None:
        gen = torch.Generator().manual_seed(self.seed)
        s = self.shape
        inner, groups = s.nheads * s.headdim, s.ngroups * s.dstate
        self.split = [inner, inner + 2 * groups, s.nheads]
        self.inner_split = [inner, groups, groups]

        def weights(*size: int, scale: float = 1.0, dtype: torch.dtype = self.dtype) -> torch.Tensor:
            return (torch.randn(*size, generator=gen) * scale).to(self.device, dtype)

        self.w_in = weights(self.hidden, sum(self.split), scale=self.hidden**-0.5)
        self.w_out = weights(inner, self.hidden, scale=inner**-0.5)
        self.w_conv = weights(s.conv_dim, s.conv_window + 1, scale=0.5)
        self.A = -weights(s.nheads, dtype=torch.float32).exp()
        self.D, self.dt_bias = weights(s.nheads, dtype=torch.float32), weights(s.nheads, dtype=torch.float32)
        state = (self.slots, s.nheads, s.headdim, s.dstate)
        self.ssm_pool = torch.zeros(state, dtype=torch.float32, device=self.device)
        self.conv_pool = torch.zeros(
            self.slots, s.conv_dim, s.conv_window, dtype=self.dtype, device=self.device
        )
        self.running = torch.tensor([RUNNING], dtype=torch.int32, device=self.device)

    def prefill(
        self, hidden: torch.Tensor, *, warm: bool, plan: CheckpointPlan | None = None
    ) -> torch.Tensor:
        """hidden: [T, hidden]; warm: start from the running state; plan: checkpoints to save on the way."""
        s, tokens = self.shape, hidden.shape[0]
        cu_seqlens = torch.tensor([0, tokens], dtype=torch.int32, device=self.device)
        has_state = torch.tensor([warm], device=self.device)
        gate, mixed, dt = (hidden @ self.w_in).split(self.split, dim=-1)
        x = mixed.transpose(0, 1)
        if plan is not None:
            save_conv_checkpoints(
                x, cu_seqlens, plan, self.conv_pool, has_initial_state=has_state, cache_indices=self.running
            )
        mixed = self.conv(
            x,
            self.w_conv,
            None,
            conv_states=self.conv_pool,
            query_start_loc=cu_seqlens,
            seq_lens_cpu=[tokens],
            cache_indices=self.running,
            has_initial_state=has_state,
            activation="silu",
        ).transpose(0, 1)[:tokens]
        x, B, C = mixed.split(self.inner_split, dim=-1)
        out = torch.empty(1, tokens, s.nheads, s.headdim, dtype=self.dtype, device=self.device)
        indices, offsets = logical_chunks([0, tokens], s.chunk_size, self.device) if warm else (None, None)
        self.ssm_pool[self.running] = mamba_chunk_scan_combined(
            x.view(1, tokens, s.nheads, s.headdim),
            dt[None],
            self.A,
            B.view(1, tokens, s.ngroups, s.dstate),
            C.view(1, tokens, s.ngroups, s.dstate),
            s.chunk_size,
            D=self.D,
            dt_bias=self.dt_bias,
            dt_softplus=True,
            initial_states=self.ssm_pool[self.running] if warm else None,
            seq_idx=sequence_index([0, tokens], self.device),
            chunk_indices=indices,
            chunk_offsets=offsets,
            cu_seqlens=cu_seqlens,
            out=out,
            return_varlen_states=True,
            state_dtype=self.ssm_pool.dtype,
            stages=self.stages,
            checkpoint_plan=plan,
            checkpoint_pool=None if plan is None else self.ssm_pool,
        )
        return (out.view(tokens, -1) * torch.nn.functional.silu(gate)) @ self.w_out

    def prefill_prompt(self, hidden: torch.Tensor, extend: int, plans: dict[int, CheckpointPlan]) -> None:
        """Chunked prefill in extends of at most `extend` tokens; plans: by an extend's first token."""
        for start in range(0, hidden.shape[0], extend):
            self.prefill(hidden[start : start + extend], warm=start > 0, plan=plans.get(start))

    def prefill_in_passes(self, hidden: torch.Tensor, extend: int, ends: list[int]) -> None:
        """The two-pass way: extends end at every checkpoint too, and the running state is copied there."""
        slots = {end: slot for slot, end in enumerate(ends, start=RUNNING + 1)}
        start, total = 0, hidden.shape[0]
        while start < total:
            grid = (start // extend + 1) * extend
            stop = min([grid, total, *(end for end in ends if end > start)])
            self.prefill(hidden[start:stop], warm=start > 0)
            if stop in slots:
                self.ssm_pool[slots[stop]] = self.ssm_pool[RUNNING]
                self.conv_pool[slots[stop]] = self.conv_pool[RUNNING]
            start = stop


def even_ends(tokens: int, count: int) -> list[int]:
    """`count` checkpoints spread over a prompt, each off every chunk grid."""
    return [tokens * i // (count + 1) + 37 for i in range(1, count + 1)]


def plans_by_extend(ends: list[int], extend: int, device: str) -> dict[int, CheckpointPlan]:
    """One plan for each extend that holds checkpoints, into slots 1, 2, … in the order of `ends`."""
    plans = {}
    for start in sorted({(end - 1) // extend * extend for end in ends}):
        rows = [
            (end - start, slot) for slot, end in enumerate(ends, RUNNING + 1) if 0 < end - start <= extend
        ]
        local, slots = [end for end, _ in rows], [slot for _, slot in rows]
        plans[start] = CheckpointPlan.from_lists([0] * len(rows), local, slots, device=device)
    return plans


def engine_functions(device: str) -> tuple[ScanStages, Callable[..., torch.Tensor]]:
    """Scan stages and causal conv for a device: SGLang's Triton ones on a GPU, the torch twins on a CPU."""
    if device == "cpu":
        from marconi_kernels.torch_twins.conv import causal_conv1d_fn
        from marconi_kernels.torch_twins.scan import TORCH_STAGES

        return TORCH_STAGES, causal_conv1d_fn
    from sglang.kernels.ops.mamba.causal_conv1d_triton import causal_conv1d_fn

    from sglang_hooks.recurrence.mamba2 import triton_stages

    return triton_stages(), causal_conv1d_fn
