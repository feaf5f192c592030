"""The live engine reuses, request by request, what the simulator with the same pools and policy says."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from marconi_ext.cli import app

pytestmark = pytest.mark.engine

TIGHT = {"--slots": "14", "--tokens": "6000"}


CASES = {
    "ours-agent": ("gittins", "agent", ""),
    "marconi-fork": ("marconi", "fork", ""),
    "messages-fork": (
        "foresight+gittins",
        "fork",
        "--marconi-message-tokens " + ",".join(map(str, range(20, 50))),
    ),
}


@pytest.mark.parametrize(("policy", "workload", "more"), CASES.values(), ids=CASES)
def test_verify_agrees_under_pressure(
    model: Path, tmp_path: Path, policy: str, workload: str, more: str
) -> None:
    """Both pools too small for the workload: states are evicted and refused, and KV is evicted. With messages that
    begin after any of thirty tokens, states are saved inside prompts as well."""
    flags = {
        "--server-flags": more,
        **TIGHT,
        "--policy": policy,
        "--trace": f"synthetic:{workload}",
        "--requests": "60",
        "--model-path": str(model),
        "--json": str(tmp_path / "out.json"),
    }
    result = CliRunner().invoke(app, ["verify", "--cpu", *(word for pair in flags.items() for word in pair)])
    assert result.exit_code == 0, (result.output, result.exception)
    assert "agree on every request" in result.output
