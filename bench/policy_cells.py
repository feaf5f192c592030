"""Policies on a fixed set of cells: sources × pools × arrival orders, in minutes on one core.

    python bench/policy_cells.py --traces FOLDER [--part slots,pools,bytes,change] [--orders 2]
        [--held-out | --generated]
        [--policies lru,gittins] [--cache FOLDER] [--json FILE]

What it answers: how far from LRU to the clairvoyant a policy gets, in which cells a simpler rule is ahead, and by more
than the order of arrivals moves. Sources are split, not sessions: `TUNING` were looked at while the policy was changed,
`HELD_OUT` are run once for the results page, and `GENERATED` (`policy_sources.py`) stand for kinds without a trace.
Token hit rates in % of prompt tokens.

- slots: unlimited KV, few slots; pools: slots and KV both short; bytes: one budget for both;
- change: 100 requests of one source after 300 of another, 16 slots: the first 30 and all 100.

Order 0 is a source's own, where it has times; in all others its sessions are interleaved anew at random. Of generated
sources each order is another draw.
`--cache` keeps tokenised sources between runs.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, permutations
from pathlib import Path

import numpy as np
from policy_sources import generated
from records import records_of, write

from marconi_ext.policies.registry import parse_policy
from marconi_ext.profiles import load_profile
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.cell import Options, run_cell
from marconi_ext.simulator.workload import Workload, load_workload
from marconi_ext.traces import Request, read_trace
from marconi_ext.traces.timeline import Arrivals

REQUESTS = 800  # of each source
BEFORE, AFTER, FIRST = 300, 100, 30  # requests of a change of traffic
CHANGE_SLOTS = 16
MODELS = ("nemotron-h-8b", "qwen3-next-80b-a3b")  # of byte budgets


@dataclass(frozen=True)
class Source:
    """A trace and the pools it is tried in. kv: tokens that are short beside `slots[1]` slots; gigabytes: budgets."""

    path: str
    slots: tuple[int, ...]
    kv: tuple[int, ...] = ()
    gigabytes: tuple[float, ...] = ()
    regenerated: float = 0.0  # share of the requests that are asked again
    generated: bool = False  # `path` is a kind of `policy_sources.py`


TUNING = {
    "mini_swe": Source("mini_swe_agent/sessions.jsonl.gz", (4, 8, 16), (60_000, 150_000), (4, 16)),
    "toolbench": Source("toolbench_dfs", (4, 8, 16), (15_000, 40_000), (1, 3)),
    "bbh": Source("bbh_fewshot", (8, 16, 32), (8_000, 16_000), (1, 3)),
    "mt_bench": Source("mt_bench_101/mtbench101.jsonl", (4, 8, 16), (5_000, 15_000), (0.5, 2)),
    "regenerated": Source("mt_bench_101/mtbench101.jsonl", (4, 8, 16), (5_000, 15_000), (0.5, 2), 0.5),
}
HELD_OUT = {
    "lm_miniswe": Source("lmcache_agent_trace/miniswe", (2, 4, 8), (60_000, 150_000), (2, 8)),
    "magagent": Source("lmcache_agent_trace/magagent", (4, 8, 16), (60_000, 150_000), (2, 8)),
    "tau": Source("tau_bench/gpt-4o-airline.json", (8, 16, 32), (20_000, 60_000), (2, 6)),
    "mooncake": Source("mooncake/synthetic_trace.jsonl.gz", (16, 64, 256), (1_000_000,), (64,)),
    "mooncake_chats": Source("mooncake/conversation_trace.jsonl.gz", (16, 64, 256), (1_000_000,), (64,)),
}
GENERATED = {
    name: Source(name, slots, kv, gigabytes, generated=True)
    for name, (slots, kv, gigabytes) in {
        "agents": ((4, 8), (30_000,), (1.5,)),
        "crowded agents": ((8, 24), (60_000,), (2,)),
        "window agents": ((4, 8), (30_000,), (1,)),
        "nested agents": ((4, 8), (40_000,), (2,)),
        "documents": ((4, 8), (15_000,), (0.7,)),
        "shared chats": ((4, 8), (15_000,), (0.7,)),
        "one call": ((8, 16), (12_000,), (1,)),
        "many calls": ((4, 8), (15_000,), (0.7,)),
        "passages": ((4, 8), (8_000,), (0.5,)),
        "few-shot": ((8, 16), (12_000,), (1,)),
    }.items()
}
SIMPLE = ("lru", "seglen", "superseded-seglen", "superseded-gdsf", "superseded-hyperbolic", "forty-lines")
POLICIES = ",".join((*SIMPLE, "gittins-basic", "gittins", "clairvoyant"))


@dataclass(frozen=True)
class Cell:
    """`counted`: its rate is over these first requests after `BEFORE` others; 0: over all."""

    part: str
    name: str
    capacity: Capacity
    model: str = MODELS[0]
    counted: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--part", default="slots,pools,bytes,change")
    parser.add_argument("--only", default="", help="sources, separated by commas")
    parser.add_argument("--orders", type=int, default=2)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--policies", default=POLICIES)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--held-out", action="store_true")
    chosen.add_argument("--generated", action="store_true")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sources = HELD_OUT if args.held_out else GENERATED if args.generated else TUNING
    sources = {name: s for name, s in sources.items() if not args.only or name in args.only.split(",")}
    policies = args.policies.split(",")
    rows: dict[Cell, dict[str, list[float]]] = {}
    for order in range(args.orders):
        loaded = {name: _ordered(source, order, args) for name, source in sources.items()}
        for cell, workload in _cells(sources, loaded, args.part.split(",")):
            for policy in policies:
                rates = rows.setdefault(cell, {}).setdefault(policy, [])
                rates.append(_rate(cell, workload, policy))
        print(f"order {order} done", flush=True)
    _show(rows, policies)
    if args.json:
        told = [
            {"cell": _label(cell), "policy": policy, "hit_percent": rates}
            for cell, by_policy in rows.items()
            for policy, rates in by_policy.items()
        ]
        write(records_of(told, bench="policy_cells", case=("cell",), provider="policy"), args.json)


def _label(cell: Cell) -> str:
    counted = f", first {cell.counted}" if cell.counted else ""
    return f"{cell.part}, {cell.name}, {cell.capacity.label}, {cell.model}{counted}"


def _cells(
    sources: dict[str, Source], loaded: dict[str, list[Request]], parts: list[str]
) -> Iterator[tuple[Cell, Workload]]:
    for name, source in sources.items():
        workload = load_workload(name, 0, loaded[name])
        if "slots" in parts:
            yield from ((Cell("slots", name, Capacity(slots=n)), workload) for n in source.slots)
        if "pools" in parts:
            for kv in source.kv:
                yield Cell("pools", name, Capacity(slots=source.slots[1], tokens=kv)), workload
        if "bytes" in parts:
            for model in MODELS:
                for gigabytes in source.gigabytes:
                    yield Cell("bytes", name, Capacity(bytes=int(gigabytes * 1e9)), model), workload
    if "change" in parts:
        for before, after in permutations(sources, 2):
            if {before, after} == {"mt_bench", "regenerated"}:
                continue
            both = loaded[before][:BEFORE] + loaded[after][:AFTER]
            workload = Workload("", 0, both, np.array([len(r.input_ids) for r in both], np.int64), 0)
            name = f"{before}, {after}"
            for counted in (FIRST, AFTER):
                yield Cell("change", name, Capacity(slots=CHANGE_SLOTS), counted=counted), workload


_hits: dict[tuple, list[int]] = {}  # of the workload run last: both rates of a change come from one run


def _rate(cell: Cell, workload: Workload, policy: str) -> float:
    key = (id(workload), cell.capacity, cell.model, policy)
    if key not in _hits:
        for old in [k for k in _hits if k[0] != key[0]]:
            del _hits[old]
        options = Options(objective="tokens", per_request=True)
        done = run_cell(workload, parse_policy(policy), cell.capacity, load_profile(cell.model), options)
        _hits[key] = done["hits"]
    counted = slice(BEFORE, BEFORE + cell.counted) if cell.counted else slice(None)
    return 100 * sum(_hits[key][counted]) / int(workload.prompt_tokens[counted].sum())


def _show(rows: dict[Cell, dict[str, list[float]]], policies: list[str]) -> None:
    """One line a cell: means over the orders, ± half of what these span; and the means of each part."""
    for part in dict.fromkeys((cell.part, cell.counted) for cell in rows):
        inside = {cell: rates for cell, rates in rows.items() if (cell.part, cell.counted) == part}
        title = part[0] + (f", first {part[1]}" if part[1] else "")
        print(f"\n| {title} | " + " | ".join(policies) + " |\n|" + "---|" * (len(policies) + 1))
        for cell, rates in inside.items():
            model = f" {cell.model}" if cell.part == "bytes" else ""
            shown = " | ".join(_mean_and_span(rates[policy]) for policy in policies)
            print(f"| {cell.name} {cell.capacity.label}{model} | {shown} |")
        means = [statistics.fmean(statistics.fmean(r[p]) for r in inside.values()) for p in policies]
        print(
            f"| **mean of {len(inside)}** | " + " | ".join(f"**{m:.2f}**" for m in means) + " |", flush=True
        )


def _mean_and_span(rates: list[float]) -> str:
    span = f" ±{(max(rates) - min(rates)) / 2:.1f}" if len(rates) > 1 else ""
    return f"{statistics.fmean(rates):.1f}{span}"


# --- sources ----------------------------------------------------------------------------------------------


def _ordered(source: Source, order: int, args: argparse.Namespace) -> list[Request]:
    if source.generated:
        return generated(source.path, order)[: args.requests]
    requests = _read(source, args)
    if order or source.regenerated:
        requests = interleaved(requests, order)
    if source.regenerated:
        requests = regenerated(requests, source.regenerated, order)
    return requests[: args.requests]


def _read(source: Source, args: argparse.Namespace) -> list[Request]:
    kept = args.cache / f"{source.path.replace('/', '_')}.pickle" if args.cache else None
    if kept is not None and kept.exists():
        return pickle.loads(kept.read_bytes())
    requests = list(islice(read_trace(args.traces / source.path), 3 * args.requests))
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(pickle.dumps(requests))
    return requests


def interleaved(requests: Iterable[Request], seed: int) -> list[Request]:
    """The same sessions in a drawn order, at drawn times: one a second, five seconds from turn to turn."""
    sessions: dict[str, list[Request]] = {}
    for request in requests:
        sessions.setdefault(request.session_id, []).append(request)
    arrivals = Arrivals(seed=seed)
    drawn = np.random.default_rng([seed, 4]).permutation(len(sessions))
    timed = []
    for start_s, at in zip(arrivals.starts_s(), drawn.tolist(), strict=False):
        turns = list(sessions.values())[at]
        times_s = arrivals.turns_s(at, start_s, len(turns))
        timed += [replace(r, arrival_s=t) for r, t in zip(turns, times_s, strict=True)]
    return sorted(timed, key=lambda r: r.arrival_s)


def regenerated(requests: list[Request], share: float, seed: int) -> list[Request]:
    """Some answers are asked for again a few requests later, and a third of these prompts with another last message."""
    rng = np.random.default_rng([seed, 5])
    timed = []
    for at, request in enumerate(requests):
        timed.append((float(at), request))
        later = at
        while rng.random() < share:
            later += rng.exponential(12.0)
            prompt, answer = request.input_ids, request.output_ids
            if rng.random() < 1 / 3:
                own = max(min(len(prompt) // 4, 60), 1)
                prompt = np.concatenate([prompt[:-own], rng.integers(10, 1000, own, dtype=np.int32)])
            other = np.concatenate([answer[:1], rng.permutation(answer[1:])]).astype(np.int32)
            timed.append((later, replace(request, input_ids=prompt, output_ids=other)))
    return [request for _, request in sorted(timed, key=lambda pair: pair[0])]


if __name__ == "__main__":
    main()
