"""Sweeps: cells in the order of their jobs, and a file that a stopped sweep goes on from."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from marconi_ext.errors import BadInputError
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.sweep import CellKey, Results, run_jobs

HEADER = {"objective": "flops", "concurrency": 1}


def cell(policy: str, slots: int) -> dict[str, Any]:
    return {
        **{"trace": "t", "seed": 0, "policy": policy, "model": "m"},
        **{"capacity_bytes": None, "slots": slots, "tokens": None},
        **{
            "token_hit_rate": 0.5,
            "ideal_hit_rate": 0.9,
            "flops_saved_fraction": 0.5,
            "state_limited_loss": 0.4,
        },
        **{"ttft_estimate": {"p50_ms": 1.0, "p95_ms": 2.0}, "seconds": 0.1},
    }


def key(policy: str, slots: int) -> CellKey:
    return CellKey("t", 0, policy, Capacity(slots=slots), "m")


@pytest.mark.parametrize("processes", [1, 3])
def test_cells_come_in_the_order_of_their_jobs(processes: int) -> None:
    found: list[dict] = []
    offset = 100  # what the function holds comes along into the workers
    run_jobs(
        lambda job: {"job": job + offset, "pid": os.getpid()},
        range(12),
        processes=processes,
        done=found.append,
    )
    assert [one["job"] for one in found] == list(range(100, 112))
    assert ({one["pid"] for one in found} == {os.getpid()}) == (processes == 1)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_cell_that_fails_ends_the_sweep(processes: int) -> None:
    found: list[dict] = []
    with pytest.raises(ZeroDivisionError):
        run_jobs(lambda job: {"job": 1 // job}, [1, 1, 0, 1], processes=processes, done=found.append)
    assert len(found) == 2


def test_a_stopped_sweep_goes_on_from_what_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    first = Results(path, HEADER, resume=True)  # nothing there yet
    first.add(cell("lru", 4))
    again = Results(path, HEADER, resume=True)
    assert again.cells == [cell("lru", 4)] and again.has(key("lru", 4))
    assert not again.has(key("lru", 8)) and not again.has(key("seglen", 4))
    again.add(cell("seglen", 4))
    again.finish()
    assert json.loads(path.read_text()) == {**HEADER, "cells": [cell("lru", 4), cell("seglen", 4)]}
    assert list(tmp_path.iterdir()) == [path], "a scratch file was left"


def test_an_earlier_name_of_a_policy_is_the_same_cell(tmp_path: Path) -> None:
    results = Results(None, HEADER, resume=False)
    results.add(cell("ours", 4))
    assert results.has(key("gittins", 4)) and not results.has(key("gittins-basic", 4))


def test_what_cant_be_gone_on_from_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    Results(path, HEADER, resume=False).finish()
    with pytest.raises(BadInputError, match="other options: objective"):
        Results(path, {**HEADER, "objective": "tokens"}, resume=True)
    for nowhere in (None, Path("-")):
        with pytest.raises(BadInputError, match="--resume: needs --json FILE"):
            Results(nowhere, HEADER, resume=True)
    with pytest.raises(BadInputError, match="--json"):
        Results(tmp_path / "none" / "sweep.json", HEADER, resume=False).add(cell("lru", 4))
