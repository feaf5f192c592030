"""Gated DeltaNet: Qwen3-Next, Qwen3.5 and their kin, on whichever prefill kernel SGLang chooses."""

from __future__ import annotations

from typing import Any

from .in_kernel import DeltaStages
from .interface import Recurrence
from .pieces import PIECE_HOOKS, PieceSaver
from .stage_hooks import STATE_STAGE_HOOK
from .trials import gdn_trial

_KERNEL = ("sglang.srt.layers.attention.linear.kernels.gdn_triton", "TritonGDNKernel")
BYPASSES = "its layers read the state pool themselves and never reach the seam where states are saved"

NO_EXTRA_BUFFER = "SGLang gives it no extra buffer of states"


def as_decode(_layer: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Its decode takes what its prefill does."""
    return arguments


GDN = Recurrence(
    name="Gated DeltaNet",
    state="convolution window [q+k+v channels, K−1], matrix [value heads, value width, key width]",
    method="pieces and forks; on request in SGLang's Triton stages",
    backends=("sglang.srt.layers.attention.linear.gdn_backend.GDNAttnBackend",),
    architectures=(
        "Qwen3NextForCausalLM",
        "Qwen3_5ForCausalLM",
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForConditionalGeneration",
        "InternS2PreviewForConditionalGeneration",
        "MiniCPMV4_6ForConditionalGeneration",
        "MiniCPMV4_7ForConditionalGeneration",
    ),
    hooks=(*PIECE_HOOKS, STATE_STAGE_HOOK),
    saver=lambda context: PieceSaver(
        context, DeltaStages(_KERNEL, window_first=False, trial=gdn_trial), as_decode
    ),
    refused={
        "Qwen4ExpForConditionalGeneration": "a slot has side states (short_conv_pool, ngram_pool) that aren't saved",
        "JetNemotronForCausalLM": BYPASSES,
        "JetVLMForConditionalGeneration": BYPASSES,
        "InternS2MobiusForConditionalGeneration": NO_EXTRA_BUFFER,
        "GigaChat35ForCausalLM": NO_EXTRA_BUFFER,
    },
    speculates=True,
    tested={"Qwen3NextForCausalLM": "CPU engine, Triton's interpreter"},
)
