"""Where SGLang's Triton pipelines of the delta rule let our state pass in: the solve of KDA, and the pass itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..hooks import Hook
from .forward import live_saver
from .in_kernel import DeltaStages
from .pieces import PieceSaver


def _stages() -> DeltaStages | None:
    saver = live_saver(PieceSaver)
    stages = None if saver is None else saver.in_kernel
    return stages if isinstance(stages, DeltaStages) else None


def _solve_stage(
    original: Callable[..., Any], q: torch.Tensor, k: torch.Tensor, *args: Any, **kwargs: Any
) -> Any:
    stages = _stages()
    if stages is not None:
        stages.solving(k)
    return original(q, k, *args, **kwargs)


def _state_stage(
    original: Callable[..., Any],
    k: torch.Tensor,
    w: torch.Tensor,
    u: torch.Tensor,
    g: torch.Tensor | None = None,
    gk: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    initial_state_indices: torch.Tensor | None = None,
    save_new_value: bool = True,
    cu_seqlens: torch.Tensor | None = None,
    chunk_indices: torch.Tensor | None = None,
    use_exp2: bool = False,
    inplace_update: bool = True,
    track_state: torch.Tensor | None = None,
    track_chunk_idx: torch.Tensor | None = None,
    chunk_offsets: torch.Tensor | None = None,
) -> Any:
    arguments = {name: value for name, value in locals().items() if name != "original"}
    stages = _stages()
    return original(**arguments) if stages is None else stages.state_stage(original, arguments)


_STAGES = "sglang.kernels.ops.attention.fla"

STATE_STAGE_HOOK = Hook(
    f"{_STAGES}.chunk_delta_h.chunk_gated_delta_rule_fwd_h",
    "around",
    _state_stage,
    why="save states in the pass that walks through them",
    parameters="k w u g gk initial_state initial_state_indices save_new_value cu_seqlens chunk_indices use_exp2 "
    "inplace_update track_state track_chunk_idx chunk_offsets",
)
SOLVE_STAGE_HOOK = Hook(
    f"{_STAGES}.chunk_intra.chunk_kda_fwd_intra",
    "around",
    _solve_stage,
    why="KDA's keys before they are scaled to their chunks' ends",
    parameters="q k v gk beta scale cu_seqlens chunk_size chunk_indices safe_gate fuse_recompute fuse_diagonal",
)
