"""The Mamba2 prefill scan with exact checkpoints: one function to put in place of the engine's.

`mamba_chunk_scan_combined` takes the engine's arguments and returns what the engine's returns. The stages are
handed in, because this package imports torch and Triton only: the engine's own Triton functions on a GPU (or
under the interpreter), the torch twins of `marconi_kernels.torch_twins.scan` on the CPU.

Source: SGLang 0.5.23, kernels/ops/mamba/triton_ops/ssd_combined.py.
Deviates: with a plan, the states at its tokens go straight into the pool in the same pass; the engine's own
tracked positions (`track_seq_idx`, `track_end_locs`) are computed by the same single launch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from marconi_kernels.checks import check_destination
from marconi_kernels.mamba2.ssm_checkpoint import save_checked, save_ssm_checkpoints
from marconi_kernels.plan import CheckpointPlan


@dataclass(frozen=True)
class ScanStages:
    """The scan's stages, with the signatures of SGLang's functions of these names (private ones: `_…_fwd`).

    varlen_tile: returns the tile that `chunk_state_varlen` ran with, so that checkpoints share its bits;
        None, or a None from it: `ssm_checkpoint.launch_config`
    """

    chunk_cumsum: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    chunk_state: Callable[..., torch.Tensor]
    state_passing: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    bmm_chunk: Callable[..., torch.Tensor]
    chunk_scan: Callable[..., torch.Tensor]
    chunk_state_varlen: Callable[..., torch.Tensor]
    varlen_tile: Callable[[], Mapping[str, int] | None] | None = None


def tile_of(kernel: Any) -> dict[str, int] | None:
    """The tile an autotuned varlen kernel last ran with, in our kernel's names; None before its first run."""
    config = getattr(kernel, "best_config", None)
    if config is None:
        return None
    tile = {f"BLOCK_{axis}": config.kwargs[f"BLOCK_SIZE_{axis}"] for axis in "MNK"}
    return tile | {"num_warps": config.num_warps, "num_stages": config.num_stages}


def mamba_chunk_scan_combined(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    chunk_indices: torch.Tensor | None = None,
    chunk_offsets: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    out: torch.Tensor | None = None,
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    return_intermediate_states: bool = False,
    state_dtype: torch.dtype | None = None,
    return_track_states: bool = False,
    track_seq_idx: torch.Tensor | None = None,
    track_end_locs: torch.Tensor | None = None,
    *,
    stages: ScanStages,
    checkpoint_plan: CheckpointPlan | None = None,
    checkpoint_pool: torch.Tensor | None = None,
) -> Any:
    """Run the chunked scan; save the states of `checkpoint_plan` into `checkpoint_pool`.

    x: [batch, T, nheads, headdim]; dt: [batch, T, nheads]; A: [nheads]; B, C: [batch, T, ngroups, dstate]
    D: [nheads] or [nheads, headdim]; z: as x; dt_bias: [nheads]; initial_states: [S, nheads, headdim, dstate]
    seq_idx: int32[batch, T]; chunk_indices, chunk_offsets: logical chunks of a batch with initial states
    cu_seqlens: int[S+1], used with return_varlen_states (then batch is 1)
    checkpoint_pool: [num_slots, nheads, headdim, dstate] - one layer of the engine's pool, any strides

    Returns: as SGLang's: (states, varlen_states, track_states) with return_track_states; otherwise those of
        states, final_states and varlen_states that were asked for, alone or as a tuple; or None.
    Mutates: out, and the plan's slots of checkpoint_pool.
    Raises: ValueError naming the argument.
    """
    if return_track_states and not return_varlen_states:
        raise ValueError("return_track_states: needs return_varlen_states and cu_seqlens")
    if return_varlen_states and cu_seqlens is None:
        raise ValueError("cu_seqlens: needed for return_varlen_states")
    if (checkpoint_plan is None) != (checkpoint_pool is None):
        raise ValueError("checkpoint_pool: checkpoint_plan and checkpoint_pool are given together")
    if checkpoint_plan is not None and not return_varlen_states:
        raise ValueError("checkpoint_plan: needs return_varlen_states and cu_seqlens")
    if not return_varlen_states:
        cu_seqlens = None
    _check_scan(x, dt, A, B, C, chunk_size, initial_states, cu_seqlens)
    if checkpoint_plan is not None:
        shape = (*x.shape[2:], B.shape[3])
        check_destination(x[0], shape, cu_seqlens, checkpoint_plan, checkpoint_pool, initial_states)

    B, C = _rows_contiguous(B), _rows_contiguous(C)
    dA_cumsum, dt = stages.chunk_cumsum(
        dt, A, chunk_size, dt_bias=dt_bias, dt_softplus=dt_softplus, dt_limit=dt_limit
    )
    states = stages.chunk_state(B, x, dt, dA_cumsum, seq_idx=seq_idx, states_in_fp32=True)
    states, final_states = stages.state_passing(
        states.flatten(-2),
        dA_cumsum,
        initial_states=None if initial_states is None else initial_states.flatten(-2),
        seq_idx=seq_idx,
        chunk_size=chunk_size,
        out_dtype=C.dtype if state_dtype is None else state_dtype,
        is_cont_batched=cu_seqlens is not None,
        chunk_offsets=chunk_offsets,
    )
    states = states.unflatten(-1, (x.shape[-1], B.shape[-1]))
    final_states = final_states.unflatten(-1, (x.shape[-1], B.shape[-1]))
    CB = stages.bmm_chunk(C, B, chunk_size, seq_idx=seq_idx, output_dtype=torch.float32)
    stages.chunk_scan(
        CB,
        x,
        dt,
        dA_cumsum,
        C,
        states,
        D=D,
        z=z,
        seq_idx=seq_idx,
        chunk_indices=chunk_indices,
        chunk_offsets=chunk_offsets,
        initial_states=initial_states,
        out=out,
    )
    varlen_states = track_states = None
    if cu_seqlens is not None:
        x0, B0, dt0, dA0, states0 = x[0], B[0], dt[0], dA_cumsum[0], states[0]
        varlen_states = stages.chunk_state_varlen(
            B0, x0, dt0, dA0, cu_seqlens, states0, initial_states=initial_states
        )
        tile = None if stages.varlen_tile is None else stages.varlen_tile()
        scan = (x0, B0, dt0, dA0, states0, cu_seqlens)
        if checkpoint_plan is not None:
            save_checked(
                *scan,
                checkpoint_plan,
                checkpoint_pool,
                initial_states=initial_states,
                final_states=varlen_states,
                tile=tile,
            )
        if track_seq_idx is not None and track_end_locs is not None and track_end_locs.numel() > 0:
            tracked = CheckpointPlan(
                track_seq_idx.to(torch.int32).contiguous(),
                track_end_locs.to(torch.int64).contiguous(),
                torch.arange(track_end_locs.numel(), device=x.device),
            )
            track_states = states0.new_empty(len(tracked), *states0.shape[1:])
            save_ssm_checkpoints(*scan, tracked, track_states, initial_states=initial_states, tile=tile)
            track_states = track_states.unsqueeze(0)

    if return_track_states:
        return states, varlen_states, track_states
    wanted = [
        value
        for value, asked in (
            (states, return_intermediate_states),
            (final_states, return_final_states),
            (varlen_states, return_varlen_states),
        )
        if asked
    ]
    if len(wanted) > 1:
        return tuple(wanted)
    return wanted[0] if wanted else None


def _rows_contiguous(t: torch.Tensor) -> torch.Tensor:
    return t if t.stride(-1) == 1 else t.contiguous()


def _check_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int,
    initial_states: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
) -> None:
    """Raise a ValueError naming the first argument that does not fit; the stages check what is left."""
    if chunk_size <= 0 or chunk_size & (chunk_size - 1):
        raise ValueError(f"chunk_size: {chunk_size} is not a power of two")
    if x.dim() != 4 or (cu_seqlens is not None and x.shape[0] != 1):
        raise ValueError(f"x: expected [batch (1 with cu_seqlens), T, nheads, headdim], got {list(x.shape)}")
    batch, num_tokens, nheads, headdim = x.shape
    if dt.shape != x.shape[:3]:
        raise ValueError(f"dt: expected {list(x.shape[:3])}, got {list(dt.shape)}")
    if A.shape != (nheads,):
        raise ValueError(f"A: expected [{nheads}], got {list(A.shape)}")
    if B.dim() != 4 or B.shape[:2] != x.shape[:2] or nheads % B.shape[2]:
        raise ValueError(f"B: expected [{batch}, {num_tokens}, ngroups, dstate], got {list(B.shape)}")
    if C.shape != B.shape:
        raise ValueError(f"C: expected B's shape {list(B.shape)}, got {list(C.shape)}")
    if initial_states is not None:
        rows = batch if cu_seqlens is None else cu_seqlens.numel() - 1
        expected = [rows, nheads, headdim, B.shape[3]]
        if list(initial_states.shape) != expected:
            raise ValueError(f"initial_states: expected {expected}, got {list(initial_states.shape)}")
