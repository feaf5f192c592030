"""SGLang's own Triton scan, made to run on CPU tensors under Triton's interpreter.

Two things are missing there: `torch.cpu.device`, which the launchers use as a context manager, and a driver
for the autotuner, so that each kernel gets one configuration. The tile is one of upstream's.
"""

from __future__ import annotations

import contextlib
from types import ModuleType

import torch
import triton
from sglang.kernels.ops.mamba.triton_ops import (
    ssd_bmm,
    ssd_chunk_scan,
    ssd_chunk_state,
    ssd_combined,
    ssd_state_passing,
)

from marconi_kernels.mamba2.scan import ScanStages, tile_of

TILE = {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 64}


def _pin_configurations(*modules: ModuleType) -> None:
    for module in modules:
        for kernel in vars(module).values():
            if isinstance(kernel, triton.runtime.Autotuner):
                wanted = [c for c in kernel.configs if c.kwargs == TILE]
                kernel.configs = (wanted or kernel.configs)[:1]


if triton.knobs.runtime.interpret:
    _pin_configurations(ssd_bmm, ssd_chunk_scan, ssd_chunk_state, ssd_state_passing)
if not hasattr(torch.cpu, "device"):
    torch.cpu.device = lambda index: contextlib.nullcontext()

upstream_scan = ssd_combined.mamba_chunk_scan_combined
chunk_state_varlen = ssd_chunk_state.chunk_state_varlen

TRITON_STAGES = ScanStages(
    chunk_cumsum=ssd_chunk_state._chunk_cumsum_fwd,
    chunk_state=ssd_chunk_state._chunk_state_fwd,
    state_passing=ssd_state_passing._state_passing_fwd,
    bmm_chunk=ssd_bmm._bmm_chunk_fwd,
    chunk_scan=ssd_chunk_scan._chunk_scan_fwd,
    chunk_state_varlen=chunk_state_varlen,
    varlen_tile=lambda: tile_of(ssd_chunk_state._chunk_state_varlen_kernel),
)
