"""The scan's stages for this machine: SGLang's Triton functions, or their torch twins on the fast CPU path."""

from __future__ import annotations

from marconi_kernels.mamba2.scan import ScanStages, tile_of

from . import cpu_platform


def scan_stages() -> ScanStages:
    """Called once, when the cache is built."""
    if cpu_platform.fast_mode():
        from marconi_kernels.torch_twins.scan import TORCH_STAGES

        return TORCH_STAGES
    from sglang.kernels.ops.mamba.triton_ops import (
        ssd_bmm,
        ssd_chunk_scan,
        ssd_chunk_state,
        ssd_state_passing,
    )

    return ScanStages(
        chunk_cumsum=ssd_chunk_state._chunk_cumsum_fwd,
        chunk_state=ssd_chunk_state._chunk_state_fwd,
        state_passing=ssd_state_passing._state_passing_fwd,
        bmm_chunk=ssd_bmm._bmm_chunk_fwd,
        chunk_scan=ssd_chunk_scan._chunk_scan_fwd,
        chunk_state_varlen=ssd_chunk_state.chunk_state_varlen,
        # The same tile gives the same bits as the state that the engine keeps for the running request.
        varlen_tile=lambda: tile_of(ssd_chunk_state._chunk_state_varlen_kernel),
    )
