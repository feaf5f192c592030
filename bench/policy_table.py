"""Policies × slots on real traces: token hit rate, and how far from LRU to the clairvoyant yardstick.

    python bench/policy_table.py --traces FOLDER [--limit 3000] [--held-out] [--policies lru,ours] [--bound]
        [--after bbh] [--json FILE]

FOLDER holds the traces by their folder names. A trace's sessions are split by a hash of their id: policies were
tuned with an eye on the even half only; `--held-out` runs the odd half. `--limit 0` reads whole traces. `mix` takes
turns between four of them. KV is unlimited: only slots are tight. Each cell: token hit rate / FLOPs saved, in %.
`--bound` adds what no policy can pass (tokens; `simulator/upper_bound.py`). `--after NAME`: the cache has served
300 requests of that trace before, which aren't counted.
"""

from __future__ import annotations

import argparse
import zlib
from itertools import islice, zip_longest
from pathlib import Path

from records import records_of, write

from marconi_ext.policies.registry import parse_policy
from marconi_ext.profiles import ModelProfile, load_profile
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.cell import Options, run_cell
from marconi_ext.simulator.upper_bound import intervals, upper_bound
from marconi_ext.simulator.workload import Workload, load_workload
from marconi_ext.traces import Request, read_trace

TRACES = {  # name -> path, slots
    "mini_swe": ("mini_swe_agent/sessions.jsonl.gz", (8, 16)),
    "tau": ("tau_bench/gpt-4o-airline.json", (8, 16, 32)),
    "bbh": ("bbh_fewshot", (8, 16, 32)),
    "toolbench": ("toolbench_dfs", (4, 8, 16)),
    "magagent": ("lmcache_agent_trace/magagent", (4, 8, 16)),
    "lm_miniswe": ("lmcache_agent_trace/miniswe", (4, 8)),
    "mt_bench": ("mt_bench_101/mtbench101.jsonl", (8, 16, 32)),
    "mooncake": ("mooncake/conversation_trace.jsonl.gz", (64, 256)),
    "mix": ("", (16, 32)),
}
MIXED = ("mini_swe", "tau", "bbh", "mt_bench")
BEFORE = 300  # requests of the trace that `--after` names
TOLD = {"case": ("trace", "slots"), "provider": "policy"}
POLICIES = ("lru", "lru-leaf", "marconi", "seglen", "best-static", "gittins-basic", "gittins", "clairvoyant")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--only", default=",".join(TRACES))
    parser.add_argument("--limit", type=int, default=3000, help="requests of each trace; 0: all")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--objective", default="tokens")
    parser.add_argument("--bound", action="store_true", help="add an upper bound for any policy")
    parser.add_argument("--after", choices=[name for name in TRACES if name != "mix"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.after and args.bound:
        parser.error("--after: not with --bound, which counts all requests")
    profile = load_profile("nemotron-h-8b")
    options = Options(objective=args.objective, per_request=bool(args.after))
    policies = args.policies.split(",")
    way = {"lru", "gittins", "clairvoyant"} <= set(policies)
    header = (
        "trace",
        "slots",
        *policies,
        *(["bound"] if args.bound else []),
        *(["of the way"] if way else []),
    )
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    cells = []
    for name in args.only.split(","):
        before = requests_of(args.after, args, BEFORE) if args.after else []
        workload = load_workload(name, 0, before + requests_of(name, args))
        ways = intervals(workload.requests) if args.bound else None
        for size in TRACES[name][1]:
            row = [
                run_cell(workload, parse_policy(p), Capacity(slots=size), profile, options) for p in policies
            ]
            if before:
                row = [counted_from(len(before), cell, workload, profile) for cell in row]
            cells += row
            shown = [f"{100 * c['token_hit_rate']:.1f} / {100 * c['flops_saved_fraction']:.1f}" for c in row]
            if ways is not None:
                shown.append(f"{100 * upper_bound(ways, size) / int(workload.prompt_tokens.sum()):.1f}")
            if way:
                rates = {c["policy"]: 100 * c["token_hit_rate"] for c in row}
                gap = rates["clairvoyant"] - rates["lru"]
                shown.append(f"{100 * (rates['gittins'] - rates['lru']) / gap:.0f} %" if gap > 0.5 else "–")
            print(f"| {name} | {size} | " + " | ".join(shown) + " |", flush=True)
            if args.json:
                config = {"limit": args.limit, "held_out": args.held_out}
                write(records_of(map(told, cells), bench="policy_table", **TOLD, config=config), args.json)


def told(cell: dict) -> dict:
    """What a file says of a cell."""
    rates = {"hit_percent": cell["token_hit_rate"], "flops_saved_percent": cell["flops_saved_fraction"]}
    names = {name: cell[name] for name in (*TOLD["case"], TOLD["provider"])}
    return names | {name: 100 * rate for name, rate in rates.items()}


def counted_from(first: int, cell: dict, workload: Workload, profile: ModelProfile) -> dict:
    """The cell with its rates over the requests from `first` on."""
    hits, prompts = cell["hits"][first:], workload.prompt_tokens[first:].tolist()
    saved, whole = (sum(map(profile.prefix_flops, tokens)) for tokens in (hits, prompts))
    return {**cell, "token_hit_rate": sum(hits) / sum(prompts), "flops_saved_fraction": saved / whole}


def requests_of(name: str, args: argparse.Namespace, limit: int | None = None) -> list[Request]:
    """The requests of one row's trace, as the arguments ask; `limit` in place of theirs."""
    if name == "mix":
        parts = [requests_of(part, args) for part in MIXED]
        parts = [part[: args.limit // len(MIXED) or None] for part in parts]
        return [r for turn in zip_longest(*parts) for r in turn if r is not None]
    stream = read_trace(args.traces / TRACES[name][0])
    if args.held_out:
        stream = (r for r in stream if zlib.crc32(r.session_id.encode()) % 2)
    return list(islice(stream, limit or args.limit or None))


if __name__ == "__main__":
    main()
