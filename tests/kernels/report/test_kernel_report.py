"""Ahead-of-time compiles within budget, and the roofline's formulas on worked examples.

Compiling is impossible in a process that interprets kernels, so it happens in a child without the variable.
"""

import json
import os
import subprocess
import sys

import pytest

from marconi_ext.profiles.gpus import GPUS
from marconi_ext.profiles.shapes import NEMOTRON_H_8B, SHAPES
from marconi_kernels.report.kernel_report import (
    CHECKPOINT_COUNTS,
    PREFILL_TOKENS,
    cost_rows,
    estimate_rows,
    over_budget,
)
from marconi_kernels.report.roofline import (
    checkpoints_ms,
    conv_checkpoint_bytes,
    prefill_ms,
    ssm_checkpoint_bytes,
    two_pass_ms,
    upstream_tracking_ms,
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    file = tmp_path_factory.mktemp("report") / "report.json"
    # SGLang, once imported by another test, names an assembler of its own; budgets are for Triton's.
    changed = ("TRITON_INTERPRET", "TRITON_PTXAS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(changed)}
    program = "from marconi_ext.cli import main; main()"
    command = [sys.executable, "-c", program, "kernels", "report", "--json", str(file)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert child.returncode == 0, child.stderr
    return json.loads(file.read_text())


def test_no_kernel_spills_or_exceeds_its_budget(report):
    assert report["over_budget"] == []
    assert all(row["spill_bytes"] == 0 for row in report["resources"])


def test_every_kernel_is_compiled_for_every_target(report):
    kernels = {(row["kernel"], row["model"]) for row in report["resources"]}
    targets = {row["target"] for row in report["resources"]}
    assert targets == {"sm_80", "sm_90", "sm_100", "gfx942"}
    assert len(report["resources"]) == len(kernels) * len(targets)
    for shape in SHAPES:
        wanted = "gdn_checkpoint" if shape.kind == "gdn" else "ssm_checkpoint"
        assert {(wanted, shape.name), ("conv_checkpoint", shape.name)} <= kernels


def test_dots_reach_the_matrix_units(report):
    for row in report["resources"]:
        if row["kernel"] in ("ssm_checkpoint", "gdn_checkpoint", "delta_state_pass"):
            assert row["mma_instructions"], row


def test_a_spill_a_regression_and_an_unknown_kernel_are_reported(report):
    row = report["resources"][0]
    assert "spills 8 bytes" in over_budget([{**row, "spill_bytes": 8}])[0]
    assert "registers 999" in over_budget([{**row, "registers": 999}])[0]
    assert "shared_bytes" in over_budget([{**row, "shared_bytes": 10**6}])[0]
    assert "not in resource_budget.json" in over_budget([{**row, "model": "new"}])[0]


def test_bytes_of_a_nemotron_checkpoint():
    """At token 64 of a chunk: 64 x (x 8192 + B 1024) x 2 B, 64 x 128 heads x 8 B, and the state in and out."""
    assert ssm_checkpoint_bytes(NEMOTRON_H_8B, 64) == 64 * 9216 * 2 + 64 * 128 * 8 + 2 * 4 * 1024 * 1024
    assert conv_checkpoint_bytes(NEMOTRON_H_8B) == 2 * 2 * 10240 * 3


def test_roofline_of_a_nemotron_prefill():
    """2 x 8.1e9 x 8192 FLOPs at 989 TFLOP/s are 134.2 ms; attention and recurrence come on top."""
    hardware = GPUS["h100"]
    assert 134.2 < prefill_ms(NEMOTRON_H_8B, 8192, hardware) < 160
    one = checkpoints_ms(NEMOTRON_H_8B, 1, hardware)
    assert one == pytest.approx(1e3 * 24 * (9.633792e6 + 122_880) / 3.35e12)
    assert checkpoints_ms(NEMOTRON_H_8B, 8, hardware) == pytest.approx(8 * one)
    assert two_pass_ms(NEMOTRON_H_8B, 8192, 1, hardware) > 10 * one
    assert upstream_tracking_ms(NEMOTRON_H_8B, 1, hardware) > 3 * one


def test_one_checkpoint_stays_under_one_percent_by_the_roofline():
    """The aim, for every model and GPU of the report."""
    rows = [
        r
        for r in estimate_rows(SHAPES, GPUS.values())
        if r["prefill_tokens"] == 8192 and r["checkpoints"] == 1
    ]
    assert len(rows) == len(SHAPES) * len(GPUS)
    assert all(row["marconi_percent"] < 1 for row in rows)


def test_estimates_cover_the_grid_and_say_what_they_are():
    rows = estimate_rows(SHAPES, GPUS.values())
    assert len(rows) == len(SHAPES) * len(GPUS) * len(PREFILL_TOKENS) * len(CHECKPOINT_COUNTS)
    assert all(row["estimate"] is True for row in rows)
    assert PREFILL_TOKENS[0] == 1024 and PREFILL_TOKENS[-1] == 131_072
    assert {row["model"] for row in cost_rows(SHAPES)} == {shape.name for shape in SHAPES}
