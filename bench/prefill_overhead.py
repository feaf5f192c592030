"""Overhead of exact checkpoints in a prefill, beside a prefill without any and one split at each checkpoint.

    python bench/prefill_overhead.py [FILE.json|FILE.csv] [--tokens 8192] [--extend 2048] [--repeats 7]

One Mamba2 layer (projections, conv, scan), prefilled in extends. On a GPU: SGLang's Triton stages and the real
kernels at the shape of Nemotron-H-8B; CUDA events, L2 flushed before each run. Without one: the torch CPU path at
16 heads and hidden width 512, in CPU time of one thread; only ratios of runs side by side mean anything there.
Rounds are interleaved, so that a busy machine disturbs all ways alike; `overhead_of_minima` compares the quickest
runs, and `checkpoint_share` times the two saves alone, which noise blurs least.
Refuses to report if the saved states of the two ways disagree.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mixer_layer import MixerLayer, engine_functions, even_ends, plans_by_extend
from records import Record, record, write

from marconi_ext.profiles.shapes import NEMOTRON_H_8B
from marconi_kernels.mamba2 import conv_checkpoint, scan

COUNTS = (1, 2, 4, 8)
SMALL = dataclasses.replace(NEMOTRON_H_8B, name="Nemotron-H-8B, 16 of 128 heads", nheads=16, ngroups=1)
TOY = dataclasses.replace(
    NEMOTRON_H_8B,
    name="marconi model's default",
    nheads=8,
    headdim=16,
    dstate=16,
    ngroups=2,
    chunk_size=64,
)
LAYERS = {"nemotron": (NEMOTRON_H_8B, 4096), "small": (SMALL, 512), "toy": (TOY, 64)}  # shape, hidden width


class Stopwatch:
    """Milliseconds of a call. On a GPU: between events, after the L2 was flushed; on a CPU: CPU time."""

    def __init__(self, device: str) -> None:
        self.cuda = device != "cpu"
        self.flush = torch.empty(256 << 20, dtype=torch.int8, device=device) if self.cuda else None

    def __call__(self, run: Callable[[], object]) -> float:
        if not self.cuda:
            began = time.process_time()
            run()
            return 1e3 * (time.process_time() - began)
        self.flush.zero_()
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        run()
        after.record()
        after.synchronize()
        return before.elapsed_time(after)


def states_agree(
    layer: MixerLayer, hidden: torch.Tensor, extend: int, ends: list[int], tolerance: float
) -> bool:
    """Whether one pass and several passes save the same states."""
    slots = list(range(1, len(ends) + 1))
    layer.prefill_prompt(hidden, extend, plans_by_extend(ends, extend, layer.device))
    one = layer.ssm_pool[slots].clone(), layer.conv_pool[slots].clone()
    layer.prefill_in_passes(hidden, extend, ends)
    two = layer.ssm_pool[slots], layer.conv_pool[slots]
    return all(((a - b).norm() / b.norm()).item() < tolerance for a, b in zip(one, two, strict=True))


def save_times(run: Callable[[], object], watch: Stopwatch) -> float:
    """Milliseconds that one prefill spends in the two saves."""
    spent: list[float] = []

    def timed(function):
        def call(*args, **kwargs):
            spent.append(watch(lambda: function(*args, **kwargs)))

        return call

    import mixer_layer

    originals = mixer_layer.save_conv_checkpoints, scan.save_checked
    mixer_layer.save_conv_checkpoints = timed(conv_checkpoint.save_conv_checkpoints)
    scan.save_checked = timed(originals[1])
    try:
        run()
    finally:
        mixer_layer.save_conv_checkpoints, scan.save_checked = originals
    return sum(spent)


def measure(device: str, layer_name: str, tokens: int, extend: int, repeats: int, seed: int) -> list[Record]:
    shape, hidden_width = LAYERS[layer_name]
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    stages, conv = engine_functions(device)
    layer = MixerLayer(shape, hidden_width, 1 + max(COUNTS), device, dtype, stages, conv, seed)
    gen = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, hidden_width, generator=gen).to(device, dtype)
    watch = Stopwatch(device)
    ways = {("none", 0): lambda: layer.prefill_prompt(hidden, extend, {})}
    for count in COUNTS:
        ends = even_ends(tokens, count)
        plans = plans_by_extend(ends, extend, device)
        # Also the warm-up.
        if not states_agree(layer, hidden, extend, ends, 1e-4 if device == "cpu" else 3e-2):
            raise SystemExit(f"{count} checkpoints: the two ways saved different states; nothing is reported")
        ways["exact", count] = lambda plans=plans: layer.prefill_prompt(hidden, extend, plans)
        ways["two_pass", count] = lambda ends=ends: layer.prefill_in_passes(hidden, extend, ends)
    times: dict[tuple[str, int], list[float]] = {way: [] for way in ways}
    saves: dict[int, list[float]] = {count: [] for count in COUNTS}
    for _ in range(repeats):
        for way, run in ways.items():
            times[way].append(watch(run))
        for count in COUNTS:
            saves[count].append(save_times(ways["exact", count], watch))

    config = {
        "model": shape.name,
        "hidden": hidden_width,
        "tokens": tokens,
        "extend": extend,
        "dtype": str(dtype),
        "device": device,
    }
    common = {"bench": "prefill_overhead", "seed": seed, "config": config}
    base = times["none", 0]
    out = [record(base, case="0 checkpoints", provider="none", metric="time", unit="ms", **common)]
    for (provider, count), samples in times.items():
        if count == 0:
            continue
        case = f"{count} checkpoints"
        ratios = [100 * (t / b - 1) for t, b in zip(samples, base, strict=True)]
        out.append(record(samples, case=case, provider=provider, metric="time", unit="ms", **common))
        out.append(record(ratios, case=case, provider=provider, metric="overhead", unit="%", **common))
        quickest = [100 * (min(samples) / min(base) - 1)]
        out.append(
            record(quickest, case=case, provider=provider, metric="overhead_of_minima", unit="%", **common)
        )
    for count, samples in saves.items():
        shares = [100 * t / statistics.median(base) for t in samples]
        case = f"{count} checkpoints"
        out.append(record(shares, case=case, provider="exact", metric="checkpoint_share", unit="%", **common))
    return out


def print_table(records: list[Record]) -> None:
    by_key = {(r.case, r.provider, r.metric): r for r in records}
    base = by_key["0 checkpoints", "none", "time"]
    print(f"{base.machine}; {base.config['model']}, {base.config['tokens']:,} tokens, seed {base.seed}")
    print("overhead in % over no checkpoints: median (p20 to p80) | quickest against quickest")
    print(f"{'checkpoints':>11}{'saves alone':>24}{'exact':>34}{'two-pass':>34}")
    for count in COUNTS:
        case = f"{count} checkpoints"
        share = by_key[case, "exact", "checkpoint_share"]
        cells = [f"{share.p50:.3f} ({share.p20:.3f} to {share.p80:.3f})".rjust(24)]
        for provider in ("exact", "two_pass"):
            spread, quickest = (
                by_key[case, provider, "overhead"],
                by_key[case, provider, "overhead_of_minima"],
            )
            cell = f"{spread.p50:.2f} ({spread.p20:.2f} to {spread.p80:.2f}) | {quickest.p50:.2f}"
            cells.append(cell.rjust(34))
        print(f"{count:>11}{''.join(cells)}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path, help="write the records to this file (.json or .csv)")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--extend", type=int, default=2048, help="chunked prefill: tokens a pass at most")
    parser.add_argument("--repeats", type=int, default=7, help="rounds for each of the seeds")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layer", choices=LAYERS, help="default: nemotron on a GPU, small without one")
    options = parser.parse_args()
    options.layer = options.layer or ("small" if options.device == "cpu" else "nemotron")
    if options.tokens < 1024:
        parser.error("--tokens: at least 1024, so that eight checkpoints lie apart")
    torch.set_num_threads(1)
    records = []
    for seed in range(options.seeds):
        measured = measure(
            options.device, options.layer, options.tokens, options.extend, options.repeats, seed
        )
        print_table(measured)
        records += measured
    if options.file is not None:
        write(records, options.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
