"""Sweeps: traces × policies × capacities, one process a core, results kept as they come."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from marconi_ext.errors import BadInputError
from marconi_ext.output import to_stdout, write_json
from marconi_ext.policies.registry import PolicyName, canonical_name
from marconi_ext.profiles import ModelProfile
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.cell import Options, run_cell
from marconi_ext.simulator.workload import Workload


@dataclass(frozen=True)
class CellKey:
    """What tells one cell from another, across runs too."""

    trace: str
    seed: int
    policy: str
    capacity: Capacity
    model: str

    def matches(self, cell: dict) -> bool:
        pools = (cell["capacity_bytes"], cell["slots"], cell["tokens"])
        wanted = (self.capacity.bytes, self.capacity.slots, self.capacity.tokens)
        names = (cell["trace"], cell["seed"], canonical_name(cell["policy"]), cell["model"])
        return pools == wanted and names == (self.trace, self.seed, canonical_name(self.policy), self.model)


class _AsWritten(BaseModel):
    model_config = ConfigDict(strict=True)


class _Estimate(_AsWritten):
    p50_ms: float
    p95_ms: float


class _Cell(_AsWritten):
    """What is read again of a cell, to tell it from others and to show it."""

    trace: str
    seed: int
    policy: str
    model: str
    capacity_bytes: int | None
    slots: int | None
    tokens: int | None
    token_hit_rate: float | None
    ideal_hit_rate: float | None
    flops_saved_fraction: float | None
    state_limited_loss: float | None
    kv_limited_loss: float | None = None
    ttft_estimate: _Estimate
    seconds: float


class _Sweep(_AsWritten):
    cells: list[_Cell]


class Results:
    """The JSON of a sweep; a file is written after each cell, so that a stopped sweep can go on."""

    def __init__(self, path: Path | None, header: dict, resume: bool) -> None:
        self._path = path
        self._header = header
        self.cells: list[dict] = []
        if resume:
            if path is None or to_stdout(path):
                raise BadInputError("--resume: needs --json FILE, the file to go on from")
            if path.exists():
                self.cells = self._read(path)

    def _read(self, path: Path) -> list[dict]:
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
            _Sweep.model_validate(old)
        except ValidationError as error:
            first = error.errors()[0]
            why = f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}"
            raise BadInputError(f"--resume: {path} is not a sweep's result: {why}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise BadInputError(f"--resume: {path} is not a sweep's result: {error}") from None
        cells = old.pop("cells")
        if old != self._header:
            differ = sorted(k for k in {*old, *self._header} if old.get(k) != self._header.get(k))
            raise BadInputError(f"--resume: {path} was made with other options: {', '.join(differ)}")
        return cells

    def has(self, key: CellKey) -> bool:
        return any(key.matches(cell) for cell in self.cells)

    def add(self, cell: dict) -> None:
        self.cells.append(cell)
        if not to_stdout(self._path):
            self._replace()

    def finish(self) -> None:
        """Write all of it, with no cell as well."""
        if self._path is not None and to_stdout(self._path):
            write_json(self._path, self._document())
        else:
            self._replace()

    def _document(self) -> dict:
        return {**self._header, "cells": self.cells}

    def _replace(self) -> None:
        """Replace the file in one step."""
        if self._path is None:
            return
        scratch = self._path.with_name(self._path.name + ".part")
        try:
            scratch.write_text(json.dumps(self._document(), indent=1) + "\n", encoding="utf-8")
            scratch.replace(self._path)
        except OSError as error:
            raise BadInputError(f"--json {self._path}: {error.strerror}") from None


_function: Callable[[Any], dict] | None = None  # inherited by forked workers with all it holds, never copied


def _call(job: Any) -> dict:
    assert _function is not None, "called outside run_jobs"
    return _function(job)


def run_jobs(
    function: Callable[[Any], dict], jobs: Sequence[Any], *, processes: int, done: Callable[[dict], None]
) -> None:
    """Call `function` with each job, in so many processes; `done` is called in the parent, in order of the jobs."""
    global _function
    _function = function
    try:
        if processes <= 1 or len(jobs) <= 1:
            for job in jobs:
                done(_call(job))
            return
        context = multiprocessing.get_context("fork")
        with context.Pool(min(processes, len(jobs))) as pool:
            for cell in pool.imap(_call, jobs):
                done(cell)
    finally:
        _function = None


def run_cells(
    workload: Workload,
    jobs: list[tuple[PolicyName, Capacity]],
    profile: ModelProfile,
    options: Options,
    *,
    processes: int,
    done: Callable[[dict], None],
) -> None:
    """Run all jobs of one workload; see `run_jobs`."""
    run_jobs(
        lambda job: run_cell(workload, job[0], job[1], profile, options), jobs, processes=processes, done=done
    )


def default_processes() -> int:
    """One a core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
