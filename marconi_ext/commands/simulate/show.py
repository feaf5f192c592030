"""The table that `marconi simulate` prints."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from marconi_ext.output import print_table
from marconi_ext.simulator.capacity import Capacity

WIDTH = 132


def print_cells(console: Console, cells: list[dict]) -> None:
    """One row a cell; all rates in % of prompt tokens."""
    table = Table(
        title="% of prompt tokens; FLOPs saved in % of all prefill FLOPs; TTFT is a roofline estimate"
    )
    table.add_column("trace")
    table.add_column("capacity")
    table.add_column("policy")
    for name in ("hit", "ideal", "FLOPs saved", "no state", "no KV", "TTFT P50/P95 ms", "s"):
        table.add_column(name, justify="right")
    for cell in cells:
        size = Capacity(cell["capacity_bytes"], cell["slots"], cell["tokens"]).label
        ttft = cell["ttft_estimate"]
        table.add_row(
            f"{cell['trace'].rsplit('/', 1)[-1]} #{cell['seed']}",
            size,
            cell["policy"],
            _percent(cell["token_hit_rate"]),
            _percent(cell["ideal_hit_rate"]),
            _percent(cell["flops_saved_fraction"]),
            _percent(cell["state_limited_loss"]),
            _percent(cell.get("kv_limited_loss")),
            f"{ttft['p50_ms']:.1f} / {ttft['p95_ms']:.1f}",
            f"{cell['seconds']:.1f}",
        )
    print_table(console, table)


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.2f}"
