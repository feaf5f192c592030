"""Short convolutions: LFM2, LFM2-MoE and Zaya, whose whole state is each layer's last inputs.

Any token's window is in the inputs of the layer's own prefill convolution, so it is saved there, before the convolution
overwrites the running slot's. SGLang's backend plans once a forward into a buffer of its own, so nothing is cut here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from marconi_kernels.mamba2.conv_checkpoint import save_conv_checkpoints
from marconi_kernels.plan import CheckpointPlan

from ..hooks import Hook
from .forward import live_saver
from .interface import ArmedCheckpoints, Recurrence, SaverContext, StateSaver


class ShortConvSaver(StateSaver):
    """Saves windows; every recurrent layer must pass one of the prefill convolutions."""

    _armed: ArmedCheckpoints | None
    _plan: CheckpointPlan | None

    def __init__(self, context: SaverContext) -> None:
        self._num_layers = context.num_layers
        self.reset()

    def begin(self, armed: ArmedCheckpoints) -> None:
        self._armed = armed

    def bind(self, pool: Any) -> None:
        """Put the armed plan on the device. pool: SGLang's HybridReqToTokenPool."""
        if self._armed is not None and len(self._armed):
            self._plan = self._armed.plan(pool)

    def save(
        self,
        windows: Sequence[tuple[torch.Tensor, torch.Tensor]],
        starts: torch.Tensor,
        warm: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        """One layer's windows. windows: (inputs [channels, T], pool [slots, channels, width]) each; starts: int[S+1];
        warm: bool[S], which sequences begin with their slot's window; slots: int[S]."""
        if self._plan is None:
            return
        for inputs, pool in windows:
            save_conv_checkpoints(
                inputs, starts, self._plan, pool, has_initial_state=warm, cache_indices=slots
            )
        self._layers += 1

    def missed(self) -> str | None:
        if self._layers == self._num_layers:
            return None
        return f"{self._layers} prefill convolutions of {self._num_layers} recurrent layers"

    def reset(self) -> None:
        self._armed = None
        self._plan = None
        self._layers = 0


# ---- hooks: each looks for the live saver first, so that another model passes through ----


def _bind_plan(_result: None, backend: Any, _forward_batch: Any) -> None:
    saver = live_saver(ShortConvSaver, backend)
    if saver is not None:
        saver.bind(backend.req_to_token_pool)


def _conv(original: Callable[..., Any], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    saver = live_saver(ShortConvSaver)
    if saver is not None:
        saver.save(
            [(x, kwargs["conv_states"])],
            kwargs["query_start_loc"],
            kwargs["has_initial_state"],
            kwargs["cache_indices"],
        )
    return original(x, *args, **kwargs)


def _fused_conv(
    original: Callable[..., Any],
    b: torch.Tensor,
    c: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    state: torch.Tensor,
    query_start_loc: torch.Tensor,
    cache_indices: torch.Tensor,
    has_initial_state: torch.Tensor,
    max_seq_len: int,
) -> Any:
    saver = live_saver(ShortConvSaver)
    if saver is not None:
        saver.save([((b * x).transpose(0, 1), state)], query_start_loc, has_initial_state, cache_indices)
    return original(b, c, x, weight, state, query_start_loc, cache_indices, has_initial_state, max_seq_len)


def _zaya(
    original: Callable[..., Any],
    qk: torch.Tensor,
    hidden_states: torch.Tensor,
    conv_qk: Any,
    conv_state: torch.Tensor,
    prev_hs_state: torch.Tensor,
    slot_ids: list[int],
    has_prefix: list[bool],
    extend_seq_lens_cpu: list[int],
    total_padding: int | None = None,
) -> Any:
    saver = live_saver(ShortConvSaver)
    if saver is not None:
        lengths = torch.tensor([0, *extend_seq_lens_cpu], dtype=torch.int32)
        saver.save(
            [(qk.transpose(0, 1), conv_state), (hidden_states.transpose(0, 1), prev_hs_state)],
            lengths.cumsum(0, dtype=torch.int32).to(qk.device),
            torch.tensor(has_prefix, dtype=torch.bool).to(qk.device),
            torch.tensor(slot_ids, dtype=torch.int64).to(qk.device),
        )
    return original(
        qk,
        hidden_states,
        conv_qk,
        conv_state,
        prev_hs_state,
        slot_ids,
        has_prefix,
        extend_seq_lens_cpu,
        total_padding,
    )


_BACKEND = "sglang.srt.layers.attention.linear.short_conv_backend.ShortConvAttnBackend"
_ARCHITECTURES = ("Lfm2ForCausalLM", "Lfm2MoeForCausalLM", "ZayaForCausalLM")

SHORT_CONV = Recurrence(
    name="short convolutions",
    state="convolution windows [channels, width]; Zaya has a second one, its last hidden state",
    method="windows of the convolution's inputs",
    backends=(_BACKEND,),
    architectures=_ARCHITECTURES,
    hooks=(
        Hook(
            f"{_BACKEND}.init_forward_metadata",
            "after",
            _bind_plan,
            why="put the plan on the device once a forward",
            parameters="self forward_batch",
        ),
        Hook(
            "sglang.srt.layers.attention.mamba.causal_conv1d.causal_conv1d_fn",
            "around",
            _conv,
            why="save LFM2's windows before its convolution overwrites them",
            parameters="x weight bias query_start_loc cache_indices has_initial_state conv_states activation "
            "pad_slot_id kwargs",
        ),
        Hook(
            "sglang.kernels.ops.mamba.lfm_short_conv.fused_lfm_short_conv_prefill",
            "around",
            _fused_conv,
            why="the same where SGLang fuses LFM2-MoE's gates and convolution",
            parameters="b c x weight state query_start_loc cache_indices has_initial_state max_seq_len",
        ),
        Hook(
            "sglang.srt.models.zaya.cca_extend",
            "around",
            _zaya,
            why="save Zaya's two windows before its convolution overwrites them",
            parameters="qk hidden_states conv_qk conv_state prev_hs_state slot_ids has_prefix extend_seq_lens_cpu "
            "total_padding",
        ),
    ),
    saver=ShortConvSaver,
    refused={
        "InklingForConditionalGeneration": "its prefill runs in a full graph, its convolutions fused with norms",
        "Lfm2VlForConditionalGeneration": "SGLang gives it no prefix cache of states",
    },
    untracked=_ARCHITECTURES,
    speculates=True,
    chains_only=True,
    unverified=("ZayaForCausalLM",),
    tested=dict.fromkeys(_ARCHITECTURES, "CPU engine"),
)
