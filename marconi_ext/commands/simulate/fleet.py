"""`marconi simulate --servers`: how hits fall with the number of servers, and what routing wins back."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path

from rich.table import Table

from marconi_ext.commands.simulate.export import write_csv
from marconi_ext.commands.simulate.run import Sweep, read
from marconi_ext.errors import BadInputError
from marconi_ext.output import tables, write_json
from marconi_ext.policies.registry import PolicyName
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.fleet import ROUTINGS, run_fleet
from marconi_ext.simulator.sweep import run_jobs
from marconi_ext.simulator.workload import Workload


def parse_fleets(servers: str, routing: str) -> tuple[list[int], list[str]]:
    """`1,2,8` and `sticky,prefix`. Raises BadInputError, naming the flag."""
    try:
        counts = [int(part) for part in servers.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise BadInputError(f"--servers {servers}: want numbers of at least 1, as in 1,2,8")
    names = [name.strip() for name in routing.split(",") if name.strip()]
    unknown = [name for name in names if name not in ROUTINGS]
    if unknown or not names:
        raise BadInputError(f"--routing {routing}: choose from {', '.join(ROUTINGS)}")
    return counts, names


def run_job(workload: Workload, sweep: Sweep, job: tuple[PolicyName, Capacity, int, str]) -> dict:
    """One cell of a policy, each server's capacity, how many servers, and a routing."""
    policy, capacity, servers, routing = job
    return run_fleet(workload, servers, routing, policy, capacity, sweep.profile, sweep.options)


def run_fleets(
    sweep: Sweep, servers: list[int], routings: list[str], json: Path | None, out: Path | None
) -> None:
    """Run all cells, print them, write them. One server needs no routing: it is run once."""
    if any(policy.family != "online" or policy.eviction == "clairvoyant" for policy in sweep.policies):
        raise BadInputError(
            "--servers: wants policies that a server can follow, such as lru, marconi, gittins"
        )
    fleets = [(n, name) for n, name in product(servers, routings) if n > 1 or name == routings[0]]
    jobs = [(p, c, *fleet) for c, p, fleet in product(sweep.capacities, sweep.policies, fleets)]
    cells: list[dict] = []
    for trace, seed in product(sweep.traces, range(sweep.seeds)):
        run = partial(run_job, read(sweep, trace, seed), sweep)
        run_jobs(run, jobs, processes=sweep.processes, done=cells.append)
    _show(cells, json)
    if json is not None:
        write_json(json, {"model": sweep.profile.name, "cells": cells})
    if out is not None:
        write_csv(out, cells)


def _show(cells: list[dict], json: Path | None) -> None:
    table = Table(
        title="% of prompt tokens; capacity is each server's; TTFT is a roofline estimate with queues"
    )
    for name in ("trace", "capacity", "policy", "servers", "routing"):
        table.add_column(name)
    for name in (
        "hit",
        "ideal",
        "no state",
        "KV elsewhere or gone",
        "busiest / mean",
        "TTFT P50/P95 ms",
        "s",
    ):
        table.add_column(name, justify="right")
    rates = ("token_hit_rate", "ideal_hit_rate", "state_limited_loss", "elsewhere_loss")
    for cell in cells:
        ttft = cell["ttft_estimate"]
        table.add_row(
            f"{cell['trace'].rsplit('/', 1)[-1]} #{cell['seed']}",
            cell["capacity"],
            cell["policy"],
            str(cell["servers"]),
            cell["routing"] if cell["servers"] > 1 else "–",
            *(f"{100 * cell[name]:.2f}" for name in rates),
            f"{cell['busiest_over_mean']:.2f}",
            f"{ttft['p50_ms']:.1f} / {ttft['p95_ms']:.1f}",
            f"{cell['seconds']:.1f}",
        )
    tables(json, 150).print(table)
