"""Measurements as data with provenance: one schema for every benchmark, written as JSON or CSV.

A record is one metric of one provider (a server, a policy, a rule) in one case. `record` makes one of samples, and
`records_of` makes them of the rows of a table.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from marconi_ext.output import write_json
from marconi_ext.results.provenance import provenance

UNITS = ("tokens_per_s", "tokens", "bytes", "ms", "us", "s", "percent", "requests", "points")
"""What the last word of a metric's name may say; else a metric has no unit."""


@dataclass(frozen=True)
class Record:
    """One metric of one provider in one case. Quantiles over n samples; config: what the case was run with."""

    bench: str
    case: str
    provider: str
    metric: str
    unit: str
    p50: float
    p20: float
    p80: float
    n: int
    seed: int
    config: dict[str, Any]
    versions: dict[str, str | None]
    git_revision: str
    machine: str


def record(
    samples: Sequence[float],
    *,
    bench: str,
    case: str,
    provider: str,
    metric: str,
    unit: str,
    seed: int,
    config: dict,
) -> Record:
    """samples: at least one"""
    p50, p20, p80 = np.quantile(np.array(samples, np.float64), [0.5, 0.2, 0.8]).tolist()
    versions, revision, machine = origin()
    return Record(
        bench,
        case,
        provider,
        metric,
        unit,
        p50,
        p20,
        p80,
        len(samples),
        seed,
        config,
        versions,
        revision,
        machine,
    )


def records_of(
    rows: Iterable[Mapping[str, Any]],
    *,
    bench: str,
    case: Sequence[str],
    provider: str | None = None,
    seed: int = 0,
    config: dict | None = None,
) -> list[Record]:
    """A record for each number in each row; a list of numbers is its samples, a dict has metrics of its own.

    case, provider: the columns that say what the row is of; without a provider the column's own name is it
    """
    found = []
    for row in rows:
        names = dict(row)
        where = ", ".join(str(names.pop(column)) for column in case)
        who = None if provider is None else str(names.pop(provider))
        for name, value in _numbers(names):
            made = record(
                value,
                bench=bench,
                case=where,
                provider=name if who is None else who,
                metric=bench if who is None else name,
                unit=unit_of(name),
                seed=seed,
                config=config or {},
            )
            found.append(made)
    return found


def unit_of(metric: str) -> str:
    """By the end of its name: `ttft_ms` is in ms."""
    return next((unit for unit in UNITS if metric == unit or metric.endswith(f"_{unit}")), "")


def write(records: Sequence[Record], file: Path) -> None:
    """JSON, on stdout where the file is `-`; CSV where its name ends so (dicts as JSON in their cells)."""
    rows = [asdict(r) for r in records]
    if file.suffix != ".csv":
        write_json(file, rows)
        return
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=[field.name for field in fields(Record)])
        writer.writeheader()
        for row in rows:
            writer.writerow({k: json.dumps(v) if isinstance(v, dict) else v for k, v in row.items()})


def _numbers(values: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, list[float]]]:
    for name, value in values.items():
        name = f"{path}{name}"
        if isinstance(value, dict):
            yield from _numbers(value, f"{name}.")
        elif isinstance(value, list | tuple) and value and all(isinstance(one, int | float) for one in value):
            yield name, list(value)
        elif isinstance(value, bool | int | float):
            yield name, [float(value)]


@cache
def origin() -> tuple[dict[str, str | None], str, str]:
    """Versions, revision and machine; the same for all records of a process."""
    found = provenance(0)
    hardware = found["hardware"]
    machine = ", ".join(hardware["gpus"]) or f"{hardware['cpu']}, {hardware['cores']} cores"
    return found["versions"], found["git_revision"] or "unknown", machine
