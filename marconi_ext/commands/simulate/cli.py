"""`marconi simulate`: policies × capacities over a trace, before anybody touches a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from marconi_ext.commands import trace_options as reading


def simulate(
    trace: Annotated[
        list[str], typer.Option(metavar="FILE|synthetic:NAME", help="A trace; may be given several times.")
    ],
    policy: Annotated[str, typer.Option(help="Names, separated by commas.")] = (
        "lru-leaf,lru,seglen,marconi,gittins-basic,gittins"
    ),
    capacity: Annotated[
        str, typer.Option(help="40GB,60GB or slots=16,tokens=2M; several pools: slots=16;slots=32.")
    ] = ("10GB,20GB,40GB"),
    model: Annotated[
        str, typer.Option(help="A profile's name, a config.json or a folder with one.")
    ] = "nemotron-h-8b",
    seeds: Annotated[
        int, typer.Option(min=1, help="Seeds 0..N-1 of synthetic traffic and drawn arrivals.")
    ] = 1,
    objective: Annotated[str, typer.Option(help="What policies maximise: flops or tokens.")] = "flops",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests that hold their cache path at once.")] = 1,
    tp: Annotated[int, typer.Option(min=1, help="Tensor-parallel ranks; bytes are one rank's.")] = 1,
    ssm_dtype: Annotated[
        str | None, typer.Option(help="State dtype; default: the config's, else float32.")
    ] = None,
    kv_dtype: Annotated[str, typer.Option(help="KV dtype.")] = "bfloat16",
    gpu: Annotated[str, typer.Option(help="GPU of the TTFT estimate.")] = "h100",
    per_request: Annotated[bool, typer.Option("--per-request", help="Add `hits`, in trace order.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip the cells that --json FILE already has.")
    ] = False,
    processes: Annotated[int, typer.Option(min=0, help="Worker processes; 0: one a core.")] = 0,
    format: reading.Format = "auto",
    tokenizer: reading.Tokenizer = "tekken",
    strict: reading.Strict = False,
    limit: reading.Limit = None,
    sessions_per_s: reading.SessionsPerS = 1.0,
    response_s: reading.ResponseS = 5.0,
    servers: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="Simulate so many servers behind a router, each of --capacity."),
    ] = None,
    routing: Annotated[
        str, typer.Option(help="With --servers: round-robin, sticky, prefix, resumable.")
    ] = "round-robin,sticky,prefix,resumable",
    against: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY", help="Show what this one (e.g. clairvoyant) was served and others weren't."
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all cells as CSV.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw hit rate over capacity (.png, .svg, .pdf).")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE|-", help="Write all cells as JSON.")] = None,
) -> None:
    """Simulate cache policies on a trace: token hit rate, FLOPs saved, and what was lost to which cause."""
    from marconi_ext.commands.simulate.export import check_plot, write_csv
    from marconi_ext.commands.simulate.export import plot as draw
    from marconi_ext.commands.simulate.run import Sweep, run_sweep
    from marconi_ext.commands.simulate.show import WIDTH, print_cells
    from marconi_ext.errors import BadInputError
    from marconi_ext.output import check_writable, stderr_console, tables
    from marconi_ext.policies.registry import parse_policy
    from marconi_ext.profiles import load_profile
    from marconi_ext.profiles.gpus import find_gpu
    from marconi_ext.simulator.capacity import LEAST_BYTES, parse_capacities
    from marconi_ext.simulator.cell import Options
    from marconi_ext.simulator.sweep import Results, default_processes
    from marconi_ext.traces.source import Reading

    for flag, path in (("--json", json), ("--csv", csv), ("--plot", plot)):
        check_writable(path, flag)
    check_plot(plot)
    if objective not in ("flops", "tokens"):
        raise BadInputError(f"--objective {objective}: want flops or tokens")
    find_gpu(gpu)
    sweep = Sweep(
        traces=trace,
        seeds=seeds,
        policies=[parse_policy(name) for name in policy.split(",") if name.strip()],
        capacities=parse_capacities(capacity),
        profile=load_profile(model, ssm_dtype=ssm_dtype, kv_dtype=kv_dtype, tp=tp),
        options=Options(objective, concurrency, per_request, gpu),
        reading=Reading(format, tokenizer, strict, 0, sessions_per_s, response_s),
        limit=limit,
        processes=processes or default_processes(),
    )
    for size in sweep.capacities:
        if size.bytes is not None and size.bytes < LEAST_BYTES:
            stderr_console().print(
                f"marconi: --capacity {capacity}: {size.label} hold no state; did you mean GB, or slots=N?",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )
    if servers is not None:
        from marconi_ext.commands.simulate.fleet import parse_fleets, run_fleets

        if resume or per_request or plot:
            raise BadInputError("--servers: takes neither --resume nor --per-request nor --plot")
        run_fleets(sweep, *parse_fleets(servers, routing), json, csv)
        return
    if against is not None:
        from marconi_ext.commands.simulate.against import run_against

        if resume or per_request or csv or plot:
            raise BadInputError("--against: takes neither --resume nor --per-request nor --csv nor --plot")
        run_against(sweep, parse_policy(against), json)
        return
    header = sweep.header(tp=tp, ssm_dtype=ssm_dtype, kv_dtype=kv_dtype)
    results = Results(json, header, resume)
    ran = run_sweep(sweep, results)
    cells = results.cells if resume else ran
    print_cells(tables(json, WIDTH), cells)
    if csv is not None:
        write_csv(csv, cells)
    if plot is not None:
        draw(plot, cells)
