"""Tables of `marconi kernels report`."""

from typing import Any

from rich.table import Table


def resource_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Compiled ahead of time, no GPU used")
    for heading in ("kernel", "model", "target"):
        table.add_column(heading, no_wrap=True)
    for heading in ("registers", "spills B", "shared B", "occupancy %"):
        table.add_column(heading, justify="right")
    table.add_column("matrix unit")
    for row in rows:
        table.add_row(
            row["kernel"],
            row["model"],
            row["target"],
            str(row["registers"]),
            str(row["spill_bytes"]),
            f"{row['shared_bytes']:,}",
            f"{100 * row['occupancy']:.0f}",
            ", ".join(row["mma_instructions"]) or "none",
        )
    return table


def cost_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Counted for each checkpoint and layer (mean offset in a chunk)")
    table.add_column("model", no_wrap=True)
    for heading in ("recurrent layers", "state MB", "min - max MB", "conv kB", "MFLOP"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["model"],
            str(row["recurrent_layers"]),
            f"{row['state_bytes_mean'] / 1e6:.2f}",
            f"{row['state_bytes_min'] / 1e6:.2f} - {row['state_bytes_max'] / 1e6:.2f}",
            f"{row['conv_bytes'] / 1e3:.0f}",
            f"{row['flops_mean'] / 1e6:.0f}",
        )
    return table


def estimate_table(rows: list[dict[str, Any]], hardware: str, *, prefill_tokens: int) -> Table:
    table = Table(
        title=f"ESTIMATE, not measured: overhead over a {prefill_tokens:,}-token prefill at {hardware}'s roofline"
    )
    table.add_column("model", no_wrap=True)
    for heading in ("checkpoints", "marconi %", "upstream tracking %", "two-pass %"):
        table.add_column(heading, justify="right")
    for row in rows:
        if row["hardware"] == hardware and row["prefill_tokens"] == prefill_tokens:
            upstream = row["upstream_tracking_percent"]
            table.add_row(
                row["model"],
                str(row["checkpoints"]),
                f"{row['marconi_percent']:.3f}",
                "on grid only" if upstream is None else f"{upstream:.3f}",
                f"{row['two_pass_percent']:.2f}",
            )
    return table
