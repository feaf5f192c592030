"""Kimi Delta Attention: Kimi Linear, Kimi K3, Ling 3 and GLM 5, on whichever prefill kernel SGLang chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..hooks import Hook
from .in_kernel import DeltaStages
from .interface import Recurrence
from .pieces import PIECE_HOOKS, PieceSaver
from .stage_hooks import SOLVE_STAGE_HOOK, STATE_STAGE_HOOK
from .trials import kda_trial

_BACKEND = "sglang.srt.layers.attention.linear.kda_backend.KDAAttnBackend"

_KERNEL = ("sglang.srt.layers.attention.linear.kernels.kda_triton", "TritonKDAKernel")


def _no_prefill_graph(_original: Callable[..., bool], _backend: Any) -> bool:
    """Asked while the server starts, before anything is live: the hook is there only with --enable-marconi."""
    return False


def as_decode(layer: Any, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Its decode takes the gate of a token as one row: [N, H·K], where its prefill takes [1, N, H, K] or [1, N, H·K].
    Kimi K3's layers hand more to their decode, its norm for one, and none of that in a prefill."""
    if any(name.startswith("_k3_") for name in vars(layer)):
        return None
    return arguments | {"a": arguments["a"][0].flatten(1)}


KDA = Recurrence(
    name="KDA",
    state="convolution window [K−1, q+k+v channels], matrix [heads, value width, key width]",
    method="pieces and forks; on request in SGLang's Triton stages",
    backends=(_BACKEND,),
    architectures=(
        "KimiLinearForCausalLM",
        "KimiK3ForConditionalGeneration",
        "BailingMoeV3ForCausalLM",
        "BailingMoeV3VLForConditionalGeneration",
        "Glm5NextForConditionalGeneration",
    ),
    hooks=(
        *PIECE_HOOKS,
        STATE_STAGE_HOOK,
        SOLVE_STAGE_HOOK,
        Hook(
            f"{_BACKEND}.supports_prefill_graph_extend",
            "around",
            _no_prefill_graph,
            why="no Python runs at a layer inside a prefill graph (GLM 5 asks for one)",
            parameters="self",
        ),
    ),
    saver=lambda context: PieceSaver(
        context, DeltaStages(_KERNEL, window_first=True, trial=kda_trial), as_decode
    ),
    speculates=True,
    untried=("DFLASH", "DSPARK"),
    tested={"KimiLinearForCausalLM": "CPU engine, Triton's interpreter"},
)
