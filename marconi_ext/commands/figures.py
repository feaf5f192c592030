"""`marconi figures`: the paper's figures from sweeps of our own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer


def figures(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for PNG, SVG and CSV files.")],
    trace: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Real traces in place of synthetic traffic (7 to 12)."),
    ] = None,
    capacity: Annotated[
        str | None, typer.Option(help="Cache sizes, with --trace only; default 10GB,20GB,40GB.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of synthetic traffic.")] = 3,
    sessions: Annotated[
        int | None,
        typer.Option(min=1, help="Sessions of each synthetic traffic; fewer is faster, with smaller caches."),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(help="Policies beside the paper's three, by `marconi simulate`'s names, with commas."),
    ] = "gittins",
    limit: Annotated[int | None, typer.Option(min=1, help="Requests taken of each real trace.")] = None,
    processes: Annotated[int, typer.Option(min=0, help="Worker processes; 0: one a core.")] = 0,
    json: Annotated[Path | None, typer.Option(metavar="FILE|-", help="All rows as JSON too.")] = None,
) -> None:
    """Draw the paper's figures 7, 8, 10, 11, 12a, 12b and 13 (PNG, SVG, CSV)."""
    from marconi_ext.errors import BadInputError
    from marconi_ext.output import check_writable, stderr_console, tables, write_json
    from marconi_ext.policies.registry import parse_policy
    from marconi_ext.simulator import figures_data as data
    from marconi_ext.simulator import figures_plot as plot
    from marconi_ext.simulator.capacity import parse_capacities
    from marconi_ext.simulator.sweep import default_processes
    from marconi_ext.simulator.workload import load_workload
    from marconi_ext.traces.source import open_source

    check_writable(json)
    if capacity is not None and not trace:
        raise BadInputError("--capacity: goes with --trace; synthetic traffic has sizes of its own")
    if sessions is not None and trace:
        raise BadInputError("--sessions: of synthetic traffic; cut a --trace down with --limit")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(f"--out {out}: {error.strerror}") from None
    own = tuple(dict.fromkeys(parse_policy(name.strip()).text for name in policy.split(",") if name.strip()))
    workers = processes or default_processes()
    with stderr_console().status("figures") as status:
        scope = data.synthetic_scope(seeds, workers, None if trace else sessions, status.update, own)
        if trace:
            capacities = parse_capacities(capacity or "10GB,20GB,40GB")
            sizes = [c.bytes for c in capacities if c.bytes is not None]
            if len(sizes) < len(capacities):
                raise BadInputError("--capacity: figures want sizes in bytes")

            def loader(path: str) -> Callable[[int], Any]:
                return lambda seed: load_workload(
                    Path(path).name, seed, open_source(path, seed=seed, limit=limit)
                )

            names = {Path(path).name: loader(path) for path in trace}
            in_gb = {name: tuple(size / 1e9 for size in sizes) for name in names}
            scope = data.Scope(names, in_gb, 1, workers, status.update, own)
        cells, lengths = data.base_rows(scope)
        drawn = {
            "figure_7": cells,
            "figure_8": data.gains(cells, "SGLang+"),
            "figure_10": lengths,
            "figure_11": data.contention_rows(scope),
            "figure_12a": data.composition_rows(scope),
            "figure_12b": data.state_dim_rows(scope),
            "figure_13": data.arrival_rows(scope),
        }
    note = "" if sessions is None else f" (a look: {sessions} sessions)"
    if note:
        stderr_console().print(
            f"marconi: --sessions {sessions}: caches are cut down with the traffic, and policies differ less than at "
            "full size; hold only figures without --sessions against the paper's numbers",
            style="yellow",
            soft_wrap=True,
        )
    plot.figure_7(cells, out, note)
    if drawn["figure_8"]:
        plot.figure_8(drawn["figure_8"], out, note)
    plot.figure_10(lengths, out, note)
    plot.figure_11(drawn["figure_11"], out, note)
    plot.figure_12(drawn["figure_12a"], "ratio", "attention : SSM layers", "figure_12a", out, note)
    plot.figure_12(
        drawn["figure_12b"], "state_dim", "state size N of the SSM layers", "figure_12b", out, note
    )
    plot.figure_13(drawn["figure_13"], out, note)
    for name, rows in drawn.items():
        if rows:
            plot.write_csv(out / f"{name}.csv", rows)
    for name in (
        name
        for name in ("figure_7", "figure_11", "figure_12a", "figure_12b", "figure_13")
        if data.idle(drawn[name])
    ):
        stderr_console().print(
            f"marconi: {name}: the caches held all of the traffic and nothing was evicted, so policies hardly differ; "
            "give more --sessions, or smaller --capacity with --trace",
            style="yellow",
            soft_wrap=True,
        )
    if json:
        write_json(json, drawn)
    tables(json).print(f"{len(drawn)} figures as PNG, SVG and CSV in {out}")
