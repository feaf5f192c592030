"""`marconi size`: how should memory be split between KV and states for my traffic?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def size(
    trace: Annotated[str, typer.Option(metavar="FILE|synthetic:NAME", help="The traffic.")],
    memory: Annotated[str, typer.Option(help="For KV and states together, on one rank: 40GB, 512MiB.")],
    model: Annotated[
        str, typer.Option(help="A profile's name, a config.json or a folder with one.")
    ] = "nemotron-h-8b",
    policy: Annotated[str, typer.Option(help="As in 'marconi simulate'.")] = "gittins",
    shares: Annotated[
        str, typer.Option(help="Shares of the memory for states to try, in %, separated by commas.")
    ] = "5,10,20,30,40,50,60,70,80,90",
    running: Annotated[
        int, typer.Option(min=0, help="Requests at a time; each keeps a state's slot to itself.")
    ] = 0,
    tiers: Annotated[
        str,
        typer.Option(help="Tiers behind the memory, each one's size: 100GB,2TB for host memory and storage."),
    ] = "",
    tp: Annotated[int, typer.Option(min=1, help="Tensor-parallel ranks; bytes are one rank's.")] = 1,
    seed: Annotated[int, typer.Option(help="Of synthetic traffic and drawn arrivals.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many requests.")] = None,
    processes: Annotated[int, typer.Option(min=0, help="Worker processes; 0: one a core.")] = 0,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Hits and loss by share.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE|-", help="Write all splits as JSON.")] = None,
) -> None:
    """Find the split of memory between KV and states that gives a trace most hits."""
    from dataclasses import asdict

    from marconi_ext.commands.size.run import find_splits, parse_shares
    from marconi_ext.commands.size.show import plot_splits, print_splits
    from marconi_ext.errors import BadInputError
    from marconi_ext.output import check_writable, write_json
    from marconi_ext.policies.registry import parse_policy
    from marconi_ext.profiles import load_profile
    from marconi_ext.simulator.capacity import parse_capacities
    from marconi_ext.simulator.sweep import default_processes
    from marconi_ext.simulator.workload import load_workload
    from marconi_ext.traces.source import Reading, open_source, reporting

    check_writable(json)
    check_writable(plot, "--plot")
    room = parse_capacities(memory)
    if len(room) != 1 or room[0].bytes is None:
        raise BadInputError(f"--memory {memory}: want one size in bytes, as in 40GB")
    given = parse_capacities(tiers) if tiers else []
    behind = [tier.bytes for tier in given if tier.bytes is not None]
    if len(behind) < len(given):
        raise BadInputError(f"--tiers {tiers}: want sizes in bytes, as in 100GB,2TB")
    name = parse_policy(policy)
    if name.family != "online":
        raise BadInputError(f"--policy {policy}: want one that a server can follow, such as lru or ours")
    wanted = parse_shares(shares)
    profile = load_profile(model, ssm_dtype=None, kv_dtype="bfloat16", tp=tp)
    reading = Reading("auto", "tekken", False, seed, 1.0, 5.0)
    with reporting() as progress:
        stream = open_source(trace, **asdict(reading), limit=limit, on_problem=progress.problem)
        workload = load_workload(trace, seed, progress.count(stream))
    found = find_splits(
        workload,
        room[0].bytes,
        wanted,
        name,
        profile,
        running,
        processes or default_processes(),
        behind,
    )
    print_splits(found, json)
    if plot is not None:
        plot_splits(found, plot)
    if json is not None:
        write_json(json, found)
