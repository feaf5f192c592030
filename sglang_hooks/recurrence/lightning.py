"""Lightning attention, whose decay is fixed a head: Ring and Ling 2.5 (Bailing)."""

from __future__ import annotations

from .in_kernel import BesideLightning
from .interface import Recurrence
from .pieces import PIECE_HOOKS, PieceSaver
from .trials import seg_la_trial

LIGHTNING = Recurrence(
    name="lightning attention",
    state="matrix [heads, key width, value width]",
    method="pieces and forks; on request in the kernel beside `seg_la`",
    backends=("sglang.srt.layers.attention.linear.lightning_backend.LightningAttentionBackend",),
    architectures=("BailingMoeV2_5ForCausalLM",),
    hooks=PIECE_HOOKS,
    saver=lambda context: PieceSaver(context, BesideLightning(seg_la_trial)),
    refused={"MiniCPMSALAForCausalLM": "SGLang switches its prefix cache off"},
    speculates=True,
    chains_only=True,
    untried=("DFLASH", "DSPARK"),
    tested={"BailingMoeV2_5ForCausalLM": "CPU engine, Triton's interpreter"},
)
