"""Bytes, FLOPs and lower-bound times of checkpoints and prefills. Estimates, not measurements.

A time is max(FLOPs / peak, bytes / bandwidth), layer work summed; launches, wave quantization and the scheduler
are left out. The prefill it is compared with is a lower bound too, so that an overhead here is on the high
side for the kernels, and on the low side for the two-pass split (which adds whole scheduler steps).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol

from marconi_kernels.report.model_shapes import ModelShape

ACTIVATION_BYTES = 2  # bf16
GEMM_TILE_ROWS = 128  # a matmul computes its tokens in tiles of so many rows
STATE_BYTES = 4  # fp32 pool and chunk states


class Hardware(Protocol):
    """A GPU's dense bf16 peak and memory bandwidth; `marconi_ext.profiles.gpus` has the numbers."""

    @property
    def name(self) -> str: ...
    @property
    def flops_per_s(self) -> float: ...
    @property
    def bytes_per_s(self) -> float: ...


def state_bytes(shape: ModelShape) -> int:
    return shape.state_elements * STATE_BYTES


def ssm_checkpoint_bytes(shape: ModelShape, live_tokens: int) -> int:
    """One checkpoint and layer: its chunk's live tokens, the carried state in, the saved state out.

    live_tokens: tokens between the chunk's start and the checkpoint (1 to Q)
    """
    if shape.kind == "gdn":  # v_new, k, and the gate's cumulative sum
        inputs = (
            ACTIVATION_BYTES * (shape.nheads * shape.headdim + shape.ngroups * shape.dstate)
            + 4 * shape.nheads
        )
    else:  # x, B, and dt with dA_cumsum
        inputs = (
            ACTIVATION_BYTES * (shape.nheads * shape.headdim + shape.ngroups * shape.dstate)
            + 8 * shape.nheads
        )
    return live_tokens * inputs + 2 * state_bytes(shape)


def ssm_checkpoint_flops(shape: ModelShape, live_tokens: int) -> int:
    return 2 * live_tokens * shape.state_elements


def conv_checkpoint_bytes(shape: ModelShape) -> int:
    return 2 * ACTIVATION_BYTES * shape.conv_dim * shape.conv_window


def mean_live_tokens(shape: ModelShape) -> int:
    return shape.chunk_size // 2


def checkpoints_ms(shape: ModelShape, count: int, hardware: Hardware) -> float:
    """`count` checkpoints in all recurrent layers, at a mean offset in the chunk."""
    live = mean_live_tokens(shape)
    moved = ssm_checkpoint_bytes(shape, live) + conv_checkpoint_bytes(shape)
    layer = max(moved / hardware.bytes_per_s, ssm_checkpoint_flops(shape, live) / hardware.flops_per_s)
    return 1e3 * shape.recurrent_layers * count * layer


def upstream_tracking_ms(shape: ModelShape, count: int, hardware: Hardware) -> float | None:
    """The engine's own way, were it asked for `count` positions off its grid, with initial states.

    2·count - 1 segments into a temporary, a scatter copy into the pool, and copies of the initial states
    (gathered, then repeated for each segment). Source: SGLang 0.5.23, `_track_states_at` and the scatter.
    None for Gated DeltaNet: the engine only copies its chunk states there, and has no way off the grid.
    """
    if shape.kind == "gdn":
        return None
    segments = 2 * count - 1
    live = mean_live_tokens(shape)
    moved = segments * ssm_checkpoint_bytes(shape, live)
    moved += 2 * count * state_bytes(shape)  # scatter
    moved += (2 * count + count + 2 * count) * state_bytes(shape)  # gather: in, out; repeat: in, out
    moved += count * conv_checkpoint_bytes(shape)
    return 1e3 * shape.recurrent_layers * moved / hardware.bytes_per_s


def prefill_ms(
    shape: ModelShape, tokens: int, hardware: Hardware, *, past_tokens: int = 0, padding_rows: int = 0
) -> float:
    """One prefill of `tokens` after `past_tokens` cached ones: weights, attention, recurrence.

    padding_rows: rows of the matmuls' last tile that hold no token
    """
    linear = max(
        2 * shape.active_params * (tokens + padding_rows) / hardware.flops_per_s,
        ACTIVATION_BYTES * shape.total_params / hardware.bytes_per_s,
    )
    pairs = tokens * past_tokens + tokens * tokens / 2
    attention = shape.attention_layers * max(
        4 * pairs * shape.attention_width / hardware.flops_per_s,
        (tokens + past_tokens) * shape.kv_width * ACTIVATION_BYTES / hardware.bytes_per_s,
    )
    chunks = -(-tokens // shape.chunk_size)
    within = tokens * shape.chunk_size * (shape.ngroups * shape.dstate + shape.nheads * shape.headdim)
    recurrence_flops = within + 4 * tokens * shape.state_elements
    # Chunk states are written, passed on (read and written) and read again by the scan.
    recurrence_bytes = 4 * chunks * state_bytes(shape) + 4 * tokens * shape.conv_dim * ACTIVATION_BYTES
    recurrence = shape.recurrent_layers * max(
        recurrence_flops / hardware.flops_per_s, recurrence_bytes / hardware.bytes_per_s
    )
    return 1e3 * (linear + attention + recurrence)


def two_pass_ms(shape: ModelShape, tokens: int, count: int, hardware: Hardware) -> float:
    """What splitting the prefill into count + 1 parts adds, states saved and loaded in between.

    The parts are even; each fills its last matmul tile by half, as parts of arbitrary lengths do on average.
    """
    bounds = [tokens * i // (count + 1) for i in range(count + 2)]
    split = sum(
        prefill_ms(shape, stop - start, hardware, past_tokens=start, padding_rows=GEMM_TILE_ROWS // 2)
        for start, stop in pairwise(bounds)
    )
    copies = 1e3 * shape.recurrent_layers * count * 2 * state_bytes(shape) / hardware.bytes_per_s
    return split - prefill_ms(shape, tokens, hardware) + copies


def overhead_table(
    shape: ModelShape, hardware: Hardware, tokens: tuple[int, ...], counts: tuple[int, ...]
) -> list[dict]:
    """Rows of estimated overhead over a prefill without checkpoints, in percent, the three ways side by side."""
    rows = []
    for length in tokens:
        base = prefill_ms(shape, length, hardware)
        for count in counts:
            ways = {
                "marconi": checkpoints_ms(shape, count, hardware),
                "upstream_tracking": upstream_tracking_ms(shape, count, hardware),
                "two_pass": two_pass_ms(shape, length, count, hardware),
            }
            rows.append(
                {
                    "estimate": True,
                    "model": shape.name,
                    "hardware": hardware.name,
                    "prefill_tokens": length,
                    "checkpoints": count,
                    "prefill_ms": round(base, 4),
                    **{
                        f"{way}_percent": None if ms is None else round(100 * ms / base, 4)
                        for way, ms in ways.items()
                    },
                }
            )
    return rows
