"""Routing rules against each other on agents that pause, where slots are scarce: several shapes of traffic and seeds.

    python bench/fleet_routing.py [--seeds 5] [--first-seed 0] [--json FILE]
    python bench/fleet_routing.py --write FOLDER

By simulation. Hits in % of prompt tokens, the balance of work, TTFT, and what `resumable` gains over each rule, seed by
seed, with the 95 % interval of its mean. The last row of a shape is one server with all slots together. --write: the
agents of the last shape as traces, one a seed, for `marconi bench --servers 2`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from records import records_of, write

from marconi_ext.commands.bench.routed_show import interval
from marconi_ext.policies.registry import parse_policy
from marconi_ext.profiles import load_profile
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.cell import Options
from marconi_ext.simulator.fleet import ROUTINGS, run_fleet
from marconi_ext.simulator.workload import Workload, load_workload
from marconi_ext.traces import Request
from marconi_ext.traces.marconi_jsonl import write as write_trace

TOKENS = 2_000_000  # of KV a server: states are what is scarce


@dataclass(frozen=True)
class Shape:
    """servers of `slots` each; sessions begin behind one of `systems` prompts of about `system_tokens`

    open_requests: keep so many open, in place of the requests' own times
    """

    name: str
    servers: int
    slots: int
    systems: int
    system_tokens: int
    sessions: int = 40
    open_requests: int | None = None


SHAPES = (
    Shape("three systems", 2, 24, 3, 500),
    Shape("three systems", 4, 12, 3, 500),
    Shape("three systems", 8, 8, 3, 500),
    Shape("one system", 2, 24, 1, 1_500),
    Shape("twelve systems", 4, 20, 12, 800),
    Shape("three systems, 8 open", 4, 6, 3, 500, 40, 8),
    Shape("three systems, 4 open", 2, 6, 3, 500, 24, 4),
    Shape("three systems, 4 open", 2, 8, 3, 500, 24, 4),
)


def agents(shape: Shape, seed: int) -> Workload:
    """Sessions arrive over 20 s, speak 2 to 14 times, and pause 20 s on average, some of them eight times as long."""
    rng = np.random.default_rng(seed)
    draw = lambda tokens: rng.integers(0, 50_000, int(tokens)).astype(np.int32)  # noqa: E731
    systems = [draw(shape.system_tokens * rng.uniform(0.5, 1.5)) for _ in range(shape.systems)]
    found = []
    for session in range(shape.sessions):
        now_s, history = rng.uniform(0, shape.sessions / 2), systems[rng.integers(shape.systems)]
        for turn in range(int(rng.integers(2, 15))):
            prompt = np.concatenate([history, draw(rng.integers(20, 400))])
            answer = draw(rng.integers(10, 150))
            found.append(Request(str(session), turn, float(now_s), prompt, answer))
            history = np.concatenate([prompt, answer])
            now_s += rng.exponential(20.0) * (8 if rng.random() < 0.15 else 1)
    return load_workload(shape.name, seed, sorted(found, key=lambda request: request.arrival_s))


def measure(shape: Shape, seeds: range) -> list[dict[str, Any]]:
    """A row a rule, and one for a single server."""
    policy, profile = (
        parse_policy("gittins"),
        load_profile("nemotron-h-8b", ssm_dtype=None, kv_dtype="bfloat16", tp=1),
    )
    rules = [(name, shape.servers, shape.slots) for name in ROUTINGS] + [
        ("one server", 1, shape.servers * shape.slots)
    ]
    cells: dict[str, list[dict[str, Any]]] = {name: [] for name, *_ in rules}
    for seed in seeds:
        workload = agents(shape, seed)
        for name, servers, slots in rules:
            routing, room = (name if servers > 1 else "sticky"), Capacity(slots=slots, tokens=TOKENS)
            cells[name].append(
                run_fleet(workload, servers, routing, policy, room, profile, Options(), shape.open_requests)
            )
    ours = [cell["token_hit_rate"] for cell in cells["resumable"]]
    rows = []
    for name, found in cells.items():
        hits = [cell["token_hit_rate"] for cell in found]
        gain, around = interval([100 * (mine - other) for mine, other in zip(ours, hits, strict=True)])
        rows.append(
            {
                "shape": shape.name,
                "servers": shape.servers,
                "slots": shape.slots,
                "routing": name,
                "hit": round(100 * float(np.mean(hits)), 2),
                "ideal": round(100 * float(np.mean([cell["ideal_hit_rate"] for cell in found])), 2),
                "ttft_p95_ms": round(float(np.mean([cell["ttft_estimate"]["p95_ms"] for cell in found])), 1),
                "busiest_over_mean": round(float(np.mean([cell["busiest_over_mean"] for cell in found])), 2),
                "resumable_gains": round(gain, 2),
                "interval": None if around is None else round(around, 2),
                "seeds_at_or_above": sum(mine >= other for mine, other in zip(ours, hits, strict=True)),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    if given.write is not None:
        given.write.mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            write_trace(agents(SHAPES[-1], seed).requests, given.write / f"agents-{seed}.jsonl")
        return
    rows = []
    for shape in SHAPES:
        for row in measure(shape, seeds):
            rows.append(row)
            print(
                f"{row['shape']}, {row['servers']} × {row['slots']} slots, {row['routing']}: hit {row['hit']} of "
                f"{row['ideal']}, balance {row['busiest_over_mean']}, TTFT P95 {row['ttft_p95_ms']} ms, resumable "
                f"gains {row['resumable_gains']:+} ± {row['interval']}, at or above in {row['seeds_at_or_above']} of "
                f"{given.seeds}",
                flush=True,
            )
    if given.json is not None:
        made = records_of(rows, bench="fleet_routing", case=("shape", "servers", "slots"), provider="routing")
        write(made, given.json)


if __name__ == "__main__":
    main()
