"""What the simulator costs: requests a second, µs an eviction by tree size, a tuning round against 21 replays.

    python bench/simulator_cost.py [--trace FILE] [--limit N] [--only speed,eviction,tuning]

Times are CPU seconds of this process, so that a busy machine changes them little; compare ratios only.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from marconi_ext.policies.admission import Exact, Offer
from marconi_ext.policies.currency import Currency
from marconi_ext.policies.fixed_rules import FlopAware, Lru, LruLeaf, SegLen
from marconi_ext.policies.learned.gittins import Gittins
from marconi_ext.policies.registry import parse_policy
from marconi_ext.policies.runtime import PolicyRuntime
from marconi_ext.policies.table.checkpoints import Kind
from marconi_ext.profiles import load_profile
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.cell import Options, run_cell
from marconi_ext.simulator.simulator import Simulator
from marconi_ext.simulator.workload import Workload, load_workload
from marconi_ext.traces.source import open_source


def speed(workload: Workload) -> None:
    """Cost a request, on growing parts of the trace."""
    profile = load_profile("nemotron-h-8b")
    print(
        "\n| policy | capacity | requests | requests/s | M prompt tokens/s | µs a request |\n|---|---|---|---|---|---|"
    )
    for name in ("lru", "seglen", "marconi", "gittins-basic", "gittins"):
        for capacity in (Capacity(slots=16), Capacity(slots=256), Capacity(bytes=20 * 10**9)):
            for part in (len(workload.requests) // 4, len(workload.requests)):
                small = load_workload("part", 0, workload.requests[:part])
                started = time.process_time()
                run_cell(small, parse_policy(name), capacity, profile, Options())
                took = time.process_time() - started
                tokens = int(small.prompt_tokens.sum()) / 1e6
                cost = f"{part / took:.0f} | {tokens / took:.1f} | {1e6 * took / part:.0f}"
                print(f"| {name} | {capacity.label} | {part} | {cost} |", flush=True)


def eviction() -> None:
    """µs to choose a victim among n states while requests come: candidates, scores and the search together.

    `gittins, floor`: as many passes over the rows, with no policy, as take about as long: what the machine adds.
    """
    print(
        "\n| policy | 1,000 states: P50 | P99 | 10,000: P50 | P99 | 100,000: P50 | P99 |\n|---|---|---|---|---|---|---|"
    )
    rules = {"lru": Lru, "lru-leaf": LruLeaf, "seglen": SegLen, "flop-aware": FlopAware, "gittins": Gittins}
    for name, make in rules.items():
        costs = []
        for n in (1_000, 10_000, 100_000):
            times = choices(filled(n, make), 2000 if n < 100_000 else 300)
            costs += [f"{1e6 * np.percentile(times[column], p):.0f}" for column in (0, 1) for p in (50, 99)]
        for row, first in ((name, 0), *([("gittins, floor", 2)] if name == "gittins" else [])):
            shown = [cost for i, cost in enumerate(costs) if i % 4 in (first, first + 1)]
            print(f"| {row} | " + " | ".join(shown) + " |", flush=True)


def filled(n: int, make) -> PolicyRuntime:
    """n states in chains of up to 8."""
    runtime, row = PolicyRuntime(Exact(), make(Currency()), Currency()), -1
    for i in range(n):
        runtime.tick += 1
        row = add_state(runtime, -1 if i % 8 == 0 else row, 100 * (i % 8 + 1))
    return runtime


def add_state(runtime: PolicyRuntime, parent: int, depth_tokens: int) -> int:
    row = runtime.record(parent, depth_tokens, Kind.LAST_TOKEN)
    runtime.offer(row, Offer(depth_tokens, Kind.LAST_TOKEN))
    runtime.saved(row)
    if parent >= 0:
        runtime.table.fanout[parent] += 1
    return row


def choices(runtime: PolicyRuntime, count: int) -> np.ndarray:
    """Seconds of each choice, and of plain passes beside it: float64[2, count]. Conversations drawn at random go
    on, and each new state evicts one."""
    rng, times = np.random.default_rng(0), np.empty((2, count))
    passes = 1
    for i in range(count):
        runtime.tick += 1
        rows = runtime.table.live_rows()
        served = int(rows[rng.integers(len(rows))])
        runtime.use([served], served)
        runtime.table.pins[served] += 1
        started = time.process_time()
        victim = runtime.victim_of_all()
        chosen = time.process_time()
        for _ in range(passes):
            np.flatnonzero(runtime.table.live)
        times[:, i] = chosen - started, time.process_time() - chosen
        passes = max(1, round(passes * times[0, i] / times[1, i])) if i < 20 else passes
        runtime.evicted(victim)
        runtime.table.pins[served] -= 1
        add_state(runtime, served, int(runtime.table.depth[served]) + 100)
    return times[:, 20:]


def tuning(workload: Workload) -> None:
    """One token-free pass over 21 α at once against 21 replays of the window on whole trees."""
    columns = (
        "window (requests)",
        "round, s",
        "21 on trees, s",
        "times less",
        "α",
        "best α",
        "FLOPs lost, points",
    )
    print("\n| " + " | ".join(columns) + " |")
    print("|---|---|---|---|---|---|---|")
    profile = load_profile("nemotron-h-8b")
    currency = profile.currency()
    for slots in (8, 16, 32):
        simulator = Simulator(Capacity(slots=slots), *parse_policy("marconi").build(currency), currency)
        rule = simulator.eviction
        rule.multiplier = 40  # windows of some hundred requests, also for few slots
        for request in workload.requests:
            simulator.serve(request)
        if not rule.tuned:
            print(f"| (not full: {rule.window_requests}) | – | – | – | – | – | – |")
            continue
        window = load_workload("window", 0, workload.requests[: rule.window_requests])
        saved, trees = {}, 0.0
        for i in range(21):
            started = time.process_time()
            cell = run_cell(
                window, parse_policy(f"flop-aware:{i / 10}"), Capacity(slots=slots), profile, Options()
            )
            trees += time.process_time() - started
            saved[i / 10] = cell["flops_saved_fraction"]
        best = max(saved, key=saved.get)
        lost = 100 * (saved[best] - saved[rule.alpha])
        times = f"{rule.tuning_seconds:.2f} | {trees:.1f} | {trees / rule.tuning_seconds:.0f}×"
        print(f"| {rule.window_requests} | {times} | {rule.alpha} | {best} | {lost:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", default="synthetic:swe-agent")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--only", default="eviction,speed,tuning")
    args = parser.parse_args()
    parts = args.only.split(",")
    if "eviction" in parts:
        eviction()
    workload = load_workload(args.trace, 0, open_source(args.trace, limit=args.limit))
    if "speed" in parts:
        speed(workload)
    if "tuning" in parts:
        tuning(workload)


if __name__ == "__main__":
    main()
