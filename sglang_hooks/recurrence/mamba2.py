"""Carry a batch's checkpoints from the scheduler into the Mamba2 layers of its forward pass.

The scheduler arms the plan just before it runs a batch; the attention backend binds it to the device once the
batch's metadata exist; each layer then saves its conv windows before the causal conv overwrites them and its
SSM states inside the scan. ForwardBatch objects are rebuilt on the way (attributes that aren't fields vanish),
so the plan travels beside them, not on them: one forward at a time runs in a scheduler process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from marconi_kernels.mamba2.conv_checkpoint import save_conv_checkpoints
from marconi_kernels.mamba2.scan import ScanStages, mamba_chunk_scan_combined, tile_of
from marconi_kernels.plan import CheckpointPlan

from .. import cpu_platform
from ..observe.stats import CacheStats
from ..radix.ledger import CheckpointLedger, PendingCheckpoint

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hybrid_linear_attn_backend import Mamba2AttnBackend
    from sglang.srt.managers.schedule_batch import ScheduleBatch

logger = logging.getLogger(__name__)


class ForwardCheckpoints:
    """The checkpoints of the forward pass that is being launched; empty between forwards."""

    def __init__(
        self, ledger: CheckpointLedger, stages: ScanStages, num_layers: int, stats: CacheStats
    ) -> None:
        self._ledger = ledger
        self._stats = stats
        self._stages = stages
        self._num_layers = num_layers
        self._checkpoints: list[PendingCheckpoint] = []
        self._rows: list[int] = []
        self._flat_ends: list[int] = []
        self._plan: CheckpointPlan | None = None
        self._layer_cache: Any = None
        self._ssm_layers = 0
        self._conv_layers = 0

    def arm(self, batch: ScheduleBatch) -> None:
        """Collect what the requests of an extend batch want saved; rows and lengths are the batch's own."""
        self._reset()
        if not batch.forward_mode.is_extend():
            return
        start = 0
        for row, (req, prefix_tokens, extend_tokens) in enumerate(
            zip(batch.reqs, batch.prefix_lens, batch.extend_lens, strict=True)
        ):
            for checkpoint in self._ledger.unwritten(req):
                offset = checkpoint.position_tokens - prefix_tokens
                if 0 < offset <= extend_tokens:
                    self._checkpoints.append(checkpoint)
                    self._rows.append(row)
                    self._flat_ends.append(start + offset)
            start += extend_tokens

    def bind(self, backend: Mamba2AttnBackend) -> None:
        """Put the armed plan on the device. Slot ids stay there: reading them would wait for the stream."""
        if not self._checkpoints:
            return
        slots = torch.cat([checkpoint.slot for checkpoint in self._checkpoints])
        slots = backend.req_to_token_pool.translate_mamba_indices(slots)
        on_host = slots.device.type == "cpu"  # nothing to wait for there, so read them once for all layers
        self._plan = CheckpointPlan(
            seq=torch.tensor(self._rows, dtype=torch.int32).to(slots.device, non_blocking=True),
            end=torch.tensor(self._flat_ends, dtype=torch.int64).to(slots.device, non_blocking=True),
            slot=slots.to(torch.int64),
            host_rows=tuple(zip(self._rows, self._flat_ends, slots.tolist(), strict=True))
            if on_host
            else None,
        )

    def run_layer(
        self,
        forward: Callable[..., Any],
        backend: Mamba2AttnBackend,
        *args: Any,
        layer_id: int,
        **kwargs: Any,
    ) -> Any:
        """Run one Mamba2 layer with its pools at hand for `conv` and `scan`. Models name layer_id in the call,
        and some nothing else."""
        if self._plan is None:
            return forward(backend, *args, layer_id=layer_id, **kwargs)
        self._layer_cache = backend.req_to_token_pool.mamba2_layer_cache(layer_id)
        try:
            return forward(backend, *args, layer_id=layer_id, **kwargs)
        finally:
            self._layer_cache = None

    def conv(self, causal_conv1d_fn: Callable[..., Any], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Save the conv windows, then run the causal conv, which overwrites the running slot's window."""
        if self._layer_cache is not None:
            save_conv_checkpoints(
                x,
                kwargs["query_start_loc"],
                self._plan,
                self._layer_cache.conv[0],
                has_initial_state=kwargs["has_initial_state"],
                cache_indices=kwargs["cache_indices"],
            )
            self._conv_layers += 1
        return causal_conv1d_fn(x, *args, **kwargs)

    def scan(self, chunk_scan_combined: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the chunked scan; with checkpoints, through our entry point, which saves them in the same pass."""
        if self._layer_cache is None:
            return chunk_scan_combined(*args, **kwargs)
        result = mamba_chunk_scan_combined(
            *args,
            **kwargs,
            stages=self._stages,
            checkpoint_plan=self._plan,
            checkpoint_pool=self._layer_cache.temporal,
        )
        self._ssm_layers += 1
        return result

    def disarm(self) -> None:
        """Mark what every layer has saved; what some layer missed stays unwritten and is never published."""
        if self._checkpoints:
            if self._ssm_layers == self._conv_layers == self._num_layers:
                for checkpoint in self._checkpoints:
                    checkpoint.written = True
            else:
                for _ in self._checkpoints:
                    self._stats.planning_failed("not-written")
                logger.error(
                    "marconi-ext: %d checkpoints dropped: %d conv and %d scan calls for %d Mamba2 layers",
                    len(self._checkpoints),
                    self._conv_layers,
                    self._ssm_layers,
                    self._num_layers,
                )
        self._reset()

    def _reset(self) -> None:
        self._checkpoints, self._rows, self._flat_ends = [], [], []
        self._plan = self._layer_cache = None
        self._ssm_layers = self._conv_layers = 0


def scan_stages() -> ScanStages:
    """The scan's stages for this machine: SGLang's Triton functions, or their torch twins on the fast CPU path.

    Called once, when the cache is built.
    """
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
