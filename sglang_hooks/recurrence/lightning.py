"""Lightning attention, whose decay is fixed a head: Ring and Ling 2.5 (Bailing)."""

from __future__ import annotations

from .in_kernel import BesideLightning
from .interface import Recurrence
from .options import WHOLE_PREFILL_GRAPHS
from .pieces import PIECE_HOOKS, PieceSaver

LIGHTNING = Recurrence(
    name="lightning attention",
    state="matrix [heads, key width, value width]",
    method="a launch beside seg_la; with minimax pieces and forks",
    backends=("sglang.srt.layers.attention.linear.lightning_backend.LightningAttentionBackend",),
    architectures=("BailingMoeV2_5ForCausalLM",),
    hooks=PIECE_HOOKS,
    saver=lambda context: PieceSaver(context, BesideLightning()),
    refused={"MiniCPMSALAForCausalLM": "SGLang switches its prefix cache off"},
    conflicts=(WHOLE_PREFILL_GRAPHS,),
    tested={"BailingMoeV2_5ForCausalLM": "CPU engine"},
)
