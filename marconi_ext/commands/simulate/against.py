"""`marconi simulate --against POLICY`: states that a policy dropped and was asked for, where another serves more."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from marconi_ext.commands.simulate.run import Sweep, read
from marconi_ext.errors import BadInputError
from marconi_ext.output import print_table, tables, write_json
from marconi_ext.policies.registry import PolicyName
from marconi_ext.simulator.cell import compare_cell

WIDTH = 132
SHOWN = 12  # kinds of losses of each cell


def run_against(sweep: Sweep, against: PolicyName, json: Path | None) -> None:
    """Compare each policy of the sweep at each capacity; print a table a cell and write all as JSON."""
    for policy in (*sweep.policies, against):
        if policy.family == "artifact" or policy.eviction == "best-static":
            raise BadInputError(f"--against: {policy.text} is neither an online policy nor a yardstick")
    console, cells = tables(json, WIDTH), []
    for trace in sweep.traces:
        for seed in range(sweep.seeds):
            workload = read(sweep, trace, seed)
            for capacity in sweep.capacities:
                for policy in sweep.policies:
                    cell = compare_cell(workload, policy, against, capacity, sweep.profile, sweep.options)
                    cells.append(cell)
                    print_table(console, _table(cell))
    if json is not None:
        write_json(json, {**sweep.header(), "cells": cells})


def _table(cell: dict) -> Table:
    title = (
        f"{cell['trace'].rsplit('/', 1)[-1]} #{cell['seed']}, {cell['capacity']}: {cell['against']} is served "
        f"{100 * cell['behind']:.2f} % of the prompt tokens that {cell['policy']} isn't, and lacks "
        f"{100 * cell['ahead']:.2f} %"
    )
    table = Table(title=title)
    for name in ("state was", "role", "class when it went"):
        table.add_column(name)
    for name in ("% lost", "requests", "depth (tokens)", "age when it went", "asked for after"):
        table.add_column(name, justify="right")
    for loss in cell["losses"][:SHOWN]:
        table.add_row(
            loss["fate"],
            loss["role"],
            loss["label"],
            f"{100 * loss['share']:.2f}",
            str(loss["requests"]),
            *(f"{loss[name]:.0f}" for name in ("depth", "age", "waited")),
        )
    return table
