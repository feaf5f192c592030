"""What `marconi simulate` leaves besides its table: the cells as CSV, and hit rate over capacity as a plot."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marconi_ext.errors import BadInputError
from marconi_ext.simulator.capacity import Capacity

Cell = dict[str, Any]
PLOTS = (".png", ".svg", ".pdf")
GROUPS = {"ttft_estimate": "ttft"}  # of a cell, whose numbers become columns of this prefix


def write_csv(path: Path, cells: Sequence[Cell]) -> None:
    """One row a cell; what is no plain value is left out but for TTFT. Raises BadInputError."""
    rows = [
        {name: value for name, value in cell.items() if not isinstance(value, dict | list)} for cell in cells
    ]
    for row, cell in zip(rows, cells, strict=True):
        for group, prefix in GROUPS.items():
            row |= {f"{prefix}_{name}": value for name, value in cell[group].items()}
    columns = list(dict.fromkeys(name for row in rows for name in row))
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise BadInputError(f"--csv {path}: {error.strerror}") from None


def check_plot(path: Path | None) -> None:
    """Raise BadInputError now if a long sweep could not draw its figure at its end."""
    if path is not None and path.suffix.lower() not in PLOTS:
        raise BadInputError(f"--plot {path}: want a {', '.join(PLOTS[:-1])} or {PLOTS[-1]}")


def plot(path: Path, cells: Sequence[Cell]) -> None:
    """Token hit rate over capacity, a panel a trace, a line a policy: the mean over seeds, with their range.

    path: ends in one of `PLOTS`
    Capacities stand in the order in which they were asked for, at equal distances. Raises BadInputError.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    traces = list(dict.fromkeys(cell["trace"] for cell in cells))
    width = max(6.4, 1.1 * len({_size(cell) for cell in cells}) + 3)
    figure, panels = pyplot.subplots(
        len(traces), 1, figsize=(width, 3.4 * len(traces)), squeeze=False, layout="constrained"
    )
    for axes, trace in zip(panels[:, 0], traces, strict=True):
        _panel(axes, trace, [cell for cell in cells if cell["trace"] == trace])
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise BadInputError(f"--plot {path}: {error.strerror}") from None
    finally:
        pyplot.close(figure)


def _panel(axes: Any, trace: str, cells: Sequence[Cell]) -> None:
    sizes = list(dict.fromkeys(map(_size, cells)))
    markers = "osD^v<>pXP*h"
    for number, policy in enumerate(dict.fromkeys(cell["policy"] for cell in cells)):
        rates = [
            [100 * c["token_hit_rate"] for c in cells if (c["policy"], _size(c)) == (policy, size)]
            for size in sizes
        ]
        places = [place for place, values in enumerate(rates) if values]
        known = [values for values in rates if values]
        line = axes.plot(
            places,
            [sum(values) / len(values) for values in known],
            marker=markers[number % len(markers)],
            label=policy,
        )
        axes.fill_between(
            places, [min(v) for v in known], [max(v) for v in known], alpha=0.15, color=line[0].get_color()
        )
    ideals = [100 * cell["ideal_hit_rate"] for cell in cells if cell["ideal_hit_rate"] is not None]
    if ideals:
        axes.axhline(sum(ideals) / len(ideals), color="0.3", linestyle="--", linewidth=1, label="ideal")
    axes.set_title(f"{trace.rsplit('/', 1)[-1]}: token hit rate over capacity")
    axes.set_xticks(range(len(sizes)), sizes, rotation=0 if len(sizes) < 7 else 30)
    axes.set_xlabel("capacity")
    axes.set_ylabel("token hit rate (% of prompt tokens)")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)


def _size(cell: Cell) -> str:
    return Capacity(cell["capacity_bytes"], cell["slots"], cell["tokens"]).label
