"""Measurements as data with provenance: one schema for every benchmark, written as JSON or CSV."""

from __future__ import annotations

import csv
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton

from marconi_ext.results.provenance import git_revision


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
    versions: dict[str, str]
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
    quantiles = torch.tensor(samples, dtype=torch.float64).quantile(torch.tensor([0.5, 0.2, 0.8]).double())
    p50, p20, p80 = quantiles.tolist()
    return Record(
        bench=bench,
        case=case,
        provider=provider,
        metric=metric,
        unit=unit,
        p50=p50,
        p20=p20,
        p80=p80,
        n=len(samples),
        seed=seed,
        config=config,
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": triton.__version__,
        },
        git_revision=git_revision() or "unknown",
        machine=machine(),
    )


def machine() -> str:
    """The GPU's name where there is one, else the kind of CPU and how many threads torch uses."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"


def write(records: Sequence[Record], file: Path) -> None:
    """JSON, or CSV where the file's name ends so (config and versions as JSON in their cells)."""
    rows = [asdict(r) for r in records]
    if file.suffix != ".csv":
        file.write_text(json.dumps(rows, indent=2) + "\n")
        return
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: json.dumps(v) if isinstance(v, dict) else v for k, v in row.items()})
