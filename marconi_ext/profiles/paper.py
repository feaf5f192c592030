"""The paper's 7B hybrid model, with its formulas as printed: the profile `paper-7b`.

24 Mamba, 4 attention and 28 MLP layers, width D = 4096, state size N = 128, forward pass only, for L tokens.
Source: Marconi (arXiv 2411.19379), its cost table and the published simulator's byte sizes.
"""

from __future__ import annotations

D = 4096
N = 128
MAMBA_LAYERS = 24
ATTENTION_LAYERS = 4
MLP_LAYERS = 28

SSM_STATE_BYTES = D * N * 2 + (2 * D + 2 * N) * 4 * 2  # one layer: SSM state and a conv window of 4, bf16
KV_TOKEN_BYTES = 4 * D  # one layer: K and V, bf16

STATE_BYTES = MAMBA_LAYERS * SSM_STATE_BYTES
KV_BYTES_PER_TOKEN = ATTENTION_LAYERS * KV_TOKEN_BYTES


def attention_flops(tokens: int) -> int:
    """One attention layer: 8·L·D² + 4·L²·D. attention_flops(2) == 8·2·4096² + 16·4096."""
    return 8 * tokens * D**2 + 4 * tokens**2 * D


def mlp_flops(tokens: int) -> int:
    """One MLP layer: 16·L·D²."""
    return 16 * tokens * D**2


def mamba_flops(tokens: int) -> int:
    """One Mamba layer: 12·L·D² + 16·L·D·N + 10·L·D."""
    return 12 * tokens * D**2 + 16 * tokens * D * N + 10 * tokens * D


def prefix_flops(tokens: int) -> int:
    """The whole model, for a prefix of `tokens` tokens."""
    return (
        MAMBA_LAYERS * mamba_flops(tokens)
        + ATTENTION_LAYERS * attention_flops(tokens)
        + MLP_LAYERS * mlp_flops(tokens)
    )
