"""Mamba2: conv windows saved before the causal conv overwrites them, SSM states inside the scan.

The attention backend binds the plan to the device once the batch's metadata exist; each layer then saves both
parts in the pass that computes its outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from marconi_kernels.mamba2.conv_checkpoint import save_conv_checkpoints
from marconi_kernels.mamba2.scan import ScanStages, mamba_chunk_scan_combined, tile_of
from marconi_kernels.plan import CheckpointPlan

from .. import cpu_platform
from ..hooks import Hook
from .forward import live_saver
from .interface import ArmedCheckpoints, Recurrence, StateSaver

if TYPE_CHECKING:
    from sglang.srt.layers.attention.hybrid_linear_attn_backend import Mamba2AttnBackend


class Mamba2Saver(StateSaver):
    """Saves in the mixer's two stages; every layer must pass both."""

    _armed: ArmedCheckpoints | None
    _plan: CheckpointPlan | None
    _layer_cache: Any

    def __init__(self, stages: ScanStages, num_layers: int) -> None:
        self._stages = stages
        self._num_layers = num_layers
        self.reset()

    def begin(self, armed: ArmedCheckpoints) -> None:
        self._armed = armed

    def bind(self, backend: Mamba2AttnBackend) -> None:
        """Put the armed plan on the device."""
        if self._armed is not None and len(self._armed):
            self._plan = self._armed.plan(backend.req_to_token_pool)

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

    def missed(self) -> str | None:
        if self._ssm_layers == self._conv_layers == self._num_layers:
            return None
        return (
            f"{self._conv_layers} conv and {self._ssm_layers} scan calls for {self._num_layers} Mamba2 layers"
        )

    def reset(self) -> None:
        self._armed = None
        self._plan = None
        self._layer_cache = None
        self._ssm_layers = self._conv_layers = 0


def scan_stages() -> ScanStages:
    """The scan's stages for this machine: SGLang's Triton functions, or their torch twins on the fast CPU path.
    Called once, when the cache is built."""
    if cpu_platform.fast_mode():
        from marconi_kernels.torch_twins.scan import TORCH_STAGES

        return TORCH_STAGES
    return triton_stages()


def triton_stages() -> ScanStages:
    """SGLang's own, for a GPU or Triton's interpreter."""
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


# ---- hooks: each looks for the live saver first, so that a stock model passes through ----


def _bind_plan(_result: None, backend: Any, forward_batch: Any) -> None:
    saver = live_saver(Mamba2Saver, backend)
    if saver is not None:
        saver.bind(backend)


def _run_layer(original: Callable[..., Any], backend: Any, *args: Any, **kwargs: Any) -> Any:
    saver = live_saver(Mamba2Saver, backend)
    if saver is None:
        return original(backend, *args, **kwargs)
    return saver.run_layer(original, backend, *args, **kwargs)


def _conv(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    saver = live_saver(Mamba2Saver)
    return original(*args, **kwargs) if saver is None else saver.conv(original, *args, **kwargs)


def _scan(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    saver = live_saver(Mamba2Saver)
    return original(*args, **kwargs) if saver is None else saver.scan(original, *args, **kwargs)


_MIXER = "sglang.srt.layers.attention.mamba.mamba"
_BACKEND = "sglang.srt.layers.attention.hybrid_linear_attn_backend.Mamba2AttnBackend"

MAMBA2 = Recurrence(
    name="Mamba2",
    state="convolution window [channels, K−1], SSM state [heads, head width, state width]",
    method="inside the scan, in the same pass",
    backends=(_BACKEND,),
    architectures=(
        "NemotronHForCausalLM",
        "NemotronHPuzzleForCausalLM",
        "NemotronH_Omni_Reasoning_V3",
        "FalconH1ForCausalLM",
        "GraniteMoeHybridForCausalLM",
    ),
    hooks=(
        Hook(
            f"{_BACKEND}.init_forward_metadata",
            "after",
            _bind_plan,
            why="put the plan on the device once a forward",
            parameters="self forward_batch",
        ),
        Hook(
            f"{_BACKEND}.forward",
            "around",
            _run_layer,
            why="know the layer, hence its state pools, while its mixer runs",
            parameters="self mixer hidden_states output layer_id forward_batch mup_vector use_triton_causal_conv",
        ),
        *(
            Hook(
                f"{_MIXER}.{name}",
                "around",
                _conv,
                why="save conv windows before the conv overwrites them",
                parameters=None,
            )
            for name in ("causal_conv1d_fn", "causal_conv1d_fn_triton")
        ),
        Hook(
            f"{_MIXER}.mamba_chunk_scan_combined",
            "around",
            _scan,
            why="save SSM states in the scan",
            parameters=None,
        ),
    ),
    saver=lambda context: Mamba2Saver(scan_stages(), context.num_layers),
    speculates=True,
    tested={
        "NemotronHForCausalLM": "CPU engine, Triton's interpreter, H100",
        "FalconH1ForCausalLM": "CPU engine",
    },
)
