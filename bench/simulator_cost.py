"""What the simulator costs: requests a second, µs an eviction by tree size, a tuning round against 21 replays.

    python bench/simulator_cost.py [--trace FILE] [--limit N] [--only speed,eviction,tuning] [--json FILE]

Times are CPU seconds of this process, so that a busy machine changes them little; compare ratios only.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from records import Record, records_of, write

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

Row = dict[str, Any]


def speed(workload: Workload) -> Iterator[Row]:
    """Cost a request, on growing parts of the trace."""
    profile = load_profile("nemotron-h-8b")
    for name in ("lru", "seglen", "marconi", "gittins-basic", "gittins"):
        for capacity in (Capacity(slots=16), Capacity(slots=256), Capacity(bytes=20 * 10**9)):
            for part in (len(workload.requests) // 4, len(workload.requests)):
                small = load_workload("part", 0, workload.requests[:part])
                started = time.process_time()
                run_cell(small, parse_policy(name), capacity, profile, Options())
                took = time.process_time() - started
                yield {
                    "policy": name,
                    "capacity": capacity.label,
                    "requests": part,
                    "requests a second": part / took,
                    "prompt_tokens_per_s": int(small.prompt_tokens.sum()) / took,
                    "request_us": 1e6 * took / part,
                }


def eviction() -> Iterator[Row]:
    """µs to choose a victim among n states while requests come: candidates, scores and the search together.

    `gittins, floor`: as many passes over the rows, with no policy, as take about as long: what the machine adds.
    """
    rules = {"lru": Lru, "lru-leaf": LruLeaf, "seglen": SegLen, "flop-aware": FlopAware, "gittins": Gittins}
    for name, make in rules.items():
        for n in (1_000, 10_000, 100_000):
            times = choices(filled(n, make), 2000 if n < 100_000 else 300)
            for who, seconds in ((name, times[0]), (f"{name}, floor", times[1])):
                if who in (name, "gittins, floor"):
                    p50, p99 = (1e6 * np.percentile(seconds, (50, 99))).tolist()
                    yield {"policy": who, "states": n, "p50_us": p50, "p99_us": p99}


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


def tuning(workload: Workload) -> Iterator[Row]:
    """One token-free pass over 21 α at once against 21 replays of the window on whole trees."""
    profile = load_profile("nemotron-h-8b")
    currency = profile.currency()
    for slots in (8, 16, 32):
        simulator = Simulator(Capacity(slots=slots), *parse_policy("marconi").build(currency), currency)
        rule = simulator.eviction
        rule.multiplier = 40  # windows of some hundred requests, also for few slots
        for request in workload.requests:
            simulator.serve(request)
        if not rule.tuned:
            continue  # the trace is shorter than its window
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
        yield {
            "window": rule.window_requests,
            "round_s": rule.tuning_seconds,
            "on_trees_s": trees,
            "times less": trees / rule.tuning_seconds,
            "α": rule.alpha,
            "best α": best,
            "flops_lost_points": 100 * (saved[best] - saved[rule.alpha]),
        }


CASES = {"eviction": ("states",), "speed": ("capacity", "requests"), "tuning": ("window",)}
"""The columns of each part that say what a row is of, beside the policy."""


def shown(part: str, rows: Iterator[Row]) -> list[Row]:
    """Print the rows as they come, as a Markdown table. Returns them."""
    found = []
    for row in rows:
        if not found:
            print("\n| " + " | ".join(row) + " |\n|" + "---|" * len(row))
        cells = (
            value if name in ("policy", *CASES[part]) else f"{value:,.4g}" for name, value in row.items()
        )
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", default="synthetic:swe-agent")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--only", default="eviction,speed,tuning")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    parts = args.only.split(",")
    workload = None
    if set(parts) - {"eviction"}:
        workload = load_workload(args.trace, 0, open_source(args.trace, limit=args.limit))
    made: list[Record] = []
    for part, rows in (("eviction", eviction), ("speed", speed), ("tuning", tuning)):
        if part in parts:
            found = shown(part, rows() if part == "eviction" else rows(workload))
            provider = None if part == "tuning" else "policy"
            made += records_of(found, bench=f"simulator_cost, {part}", case=CASES[part], provider=provider)
    if args.json:
        write(made, args.json)


if __name__ == "__main__":
    main()
