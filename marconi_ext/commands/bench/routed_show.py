"""What `marconi bench --servers` prints: a row a router, over all runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from marconi_ext.output import tables, write_json

# Student's t, two-sided 95 %, by degrees of freedom
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """(mean, half of its 95 % interval; None for one value)"""
    if len(values) < 2:
        return values[0], None
    spread = statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), T95.get(len(values) - 1, 2.0) * spread


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a router: means over runs, and hits against `resumable`'s, run by run."""
    routers = list(dict.fromkeys(row["router"] for row in rows))
    by_router = {name: [row for row in rows if row["router"] == name] for name in routers}
    ours = {(row["traffic"], row["run"]): row["token_hit_rate"] for row in by_router.get("resumable", [])}
    found = []
    for name, runs in by_router.items():
        hit, around = interval([row["token_hit_rate"] for row in runs])
        line = {"router": name, "runs": len(runs), "token_hit_rate": hit, "interval": around}
        for key in ("ideal_hit_rate", "busiest_over_mean", "state_limited_loss", "simulated_hit_rate"):
            values = [row[key] for row in runs if row[key] is not None]
            line[key] = statistics.mean(values) if values else None
        differing = [row["simulated_otherwise"] for row in runs if row["simulated_otherwise"] is not None]
        line["simulated_otherwise"] = sum(differing) if differing else None
        for which in ("p50", "p95"):
            line[f"ttft_{which}_ms"] = statistics.mean(row["ttft_ms"][which] for row in runs)
        gaps = [
            ours[row["traffic"], row["run"]] - row["token_hit_rate"]
            for row in runs
            if (row["traffic"], row["run"]) in ours
        ]
        line["resumable_gains"], line["gains_interval"] = interval(gaps) if gaps else (None, None)
        found.append(line)
    return found


def show(rows: list[dict[str, Any]], servers: int, json: Path | None) -> None:
    """Print the table, and write rows and summary."""
    lines = summary(rows)
    table = Table(
        title=f"{servers} servers, {lines[0]['runs']} runs; % of prompt tokens; ±: 95 % interval of the mean"
    )
    for name in (
        "router",
        "hit",
        "ideal",
        "no state",
        "simulated",
        "resumable gains",
        "busiest / mean",
        "TTFT P50/P95 ms",
    ):
        table.add_column(name, justify="left" if name == "router" else "right")
    for line in lines:
        table.add_row(
            line["router"],
            _percent(line["token_hit_rate"], line["interval"]),
            _percent(line["ideal_hit_rate"]),
            _percent(line["state_limited_loss"]),
            _percent(line["simulated_hit_rate"]) + _otherwise(line["simulated_otherwise"]),
            "–"
            if line["router"] == "resumable"
            else _percent(line["resumable_gains"], line["gains_interval"]),
            f"{line['busiest_over_mean']:.2f}",
            f"{line['ttft_p50_ms']:.0f} / {line['ttft_p95_ms']:.0f}",
        )
    tables(json, 150).print(table)
    if json is not None:
        write_json(json, {"servers": servers, "summary": lines, "runs": rows})


def _otherwise(requests: int | None) -> str:
    return f" ({requests:,} differ)" if requests else ""


def _percent(share: float | None, around: float | None = None) -> str:
    if share is None:
        return "–"
    return f"{100 * share:.2f}" + ("" if around is None else f" ± {100 * around:.2f}")
