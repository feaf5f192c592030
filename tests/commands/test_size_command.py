"""`marconi size`: the splits that it tries, and that its best is what the simulator says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from marconi_ext.cli import app
from marconi_ext.commands.size.run import parse_shares, split
from marconi_ext.errors import BadInputError
from marconi_ext.policies.registry import parse_policy
from marconi_ext.profiles import load_profile
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.cell import Options, run_cell
from marconi_ext.simulator.workload import load_workload
from marconi_ext.traces.source import open_source

PROFILE = load_profile("nemotron-h-8b", ssm_dtype=None, kv_dtype="bfloat16", tp=1)


def test_a_split_uses_the_memory_and_no_more() -> None:
    memory = 10 * 10**9
    found = split(memory, 0.4, PROFILE, 3)
    used = (found.slots + 3) * PROFILE.state_bytes + found.tokens * PROFILE.kv_bytes_per_token
    assert memory - PROFILE.state_bytes - PROFILE.kv_bytes_per_token < used <= memory
    assert split(memory, 0.4, PROFILE, 10_000) is None


def test_best_is_the_simulators(tmp_path: Path) -> None:
    out, picture = tmp_path / "o.json", tmp_path / "o.png"
    arguments = [
        "--memory",
        "4GB",
        "--limit",
        "80",
        "--shares",
        "3,20,60",
        "--processes",
        "1",
        "--tiers",
        "1GB,99GB",
    ]
    done = CliRunner().invoke(
        app,
        ["size", "--trace", "synthetic:agent", *arguments, "--json", str(out), "--plot", str(picture)],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert [row["state_share"] for row in found["splits"]] == [0.03, 0.2, 0.6]
    assert picture.stat().st_size > 5_000
    rates = [row["token_hit_rate"] for row in found["splits"]]
    assert found["best"]["token_hit_rate"] == max(rates) > min(rates), "the split makes no difference here"
    workload = load_workload("t", 0, open_source("synthetic:agent", limit=80))
    pools = Capacity(slots=found["best"]["slots"], tokens=found["best"]["tokens"])
    cell = run_cell(workload, parse_policy("gittins"), pools, PROFILE, Options())
    assert cell["token_hit_rate"] == found["best"]["token_hit_rate"]
    assert "--mamba-full-memory-ratio" in done.output
    tiers = [row["token_hit_rate"] for row in found["tiers"]]
    assert [row["tier_bytes"] for row in found["tiers"]] == [10**9, 99 * 10**9]
    assert min(rates) < found["shared"]["token_hit_rate"] <= tiers[0] <= tiers[1]
    cell = run_cell(workload, parse_policy("gittins"), Capacity(bytes=104 * 10**9), PROFILE, Options())
    assert tiers[1] == cell["token_hit_rate"]


def test_a_tier_has_a_size_in_bytes() -> None:
    done = CliRunner().invoke(
        app, ["size", "--trace", "synthetic:agent", "--memory", "4GB", "--tiers", "slots=5"]
    )
    assert done.exit_code != 0 and isinstance(done.exception, BadInputError)


@pytest.mark.parametrize("text", ["", "0", "100", "a", "20,120"])
def test_bad_shares(text: str) -> None:
    with pytest.raises(BadInputError, match="--shares"):
        parse_shares(text)


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    arguments = ["--memory", "4GB", "--limit", "20", "--shares", "20", "--processes", "1"]
    with pytest.raises(BadInputError, match=r"--plot .*want a \.png"):
        CliRunner().invoke(
            app,
            ["size", "--trace", "synthetic:agent", *arguments, "--plot", str(tmp_path / "o.doc")],
            catch_exceptions=False,
        )
