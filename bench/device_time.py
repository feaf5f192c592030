"""Time on the GPU of each kernel of one Mamba2 layer's prefill, without and with exact checkpoints.

    python bench/device_time.py [--tokens 8192]

By torch's profiler, so without launch gaps: what the kernels cost a GPU that is kept busy. Nemotron-H-8B's shape in
bf16, SGLang's Triton stages; the mean of 20 prefills. `bench/prefill_overhead.py` measures the same layer on the
clock, launches included.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from mixer_layer import MixerLayer, engine_functions, even_ends, plans_by_extend
from records import records_of, write
from torch.profiler import ProfilerActivity, profile

from marconi_ext.profiles.shapes import NEMOTRON_H_8B

HIDDEN, REPEATS, SHOWN = 4_096, 20, 22


def device_times(layer: MixerLayer, hidden: torch.Tensor, count: int) -> list[tuple[float, float, str]]:
    """(µs a prefill, launches a prefill, kernel) with `count` checkpoints, dearest first."""
    tokens = hidden.shape[0]
    plans = plans_by_extend(even_ends(tokens, count), tokens, "cuda") if count else {}
    for _ in range(3):
        layer.prefill_prompt(hidden, tokens, plans)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        for _ in range(REPEATS):
            layer.prefill_prompt(hidden, tokens, plans)
        torch.cuda.synchronize()
    events = [e for e in profiler.key_averages() if "cuda" in str(e.device_type).lower()]
    return sorted(
        ((e.self_device_time_total / REPEATS, e.count / REPEATS, e.key) for e in events), reverse=True
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=8_192)
    parser.add_argument("--json", type=Path, help="a file, or - for stdout")
    options = parser.parse_args()
    found = []
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU here")
    stages, conv = engine_functions("cuda")
    layer = MixerLayer(NEMOTRON_H_8B, HIDDEN, 9, "cuda", torch.bfloat16, stages, conv, 0)
    hidden = torch.randn(options.tokens, HIDDEN, device="cuda", dtype=torch.bfloat16)
    for count in (0, 1, 8):
        rows = device_times(layer, hidden, count)
        ours = sum(time for time, _, name in rows if name.endswith("_checkpoint_kernel"))
        total = sum(time for time, _, _ in rows)
        found.append({"checkpoints": count, "provider": "marconi", "layer_us": total, "saves_us": ours})
        print(
            f"{count} checkpoints: {total:.1f} µs on the device, {ours:.1f} of them to save ({ours / total:.2%})"
        )
        for time, launches, name in rows[:SHOWN]:
            print(f"  {time:9.2f} µs  x{launches:5.2f}  {name[:90]}")
    if options.json:
        write(
            records_of(found, bench="device_time", case=("checkpoints",), provider="provider"), options.json
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
