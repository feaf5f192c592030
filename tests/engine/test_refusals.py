"""Bad flags and combinations end the start with one message that names the flag and the fix."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from live_server import OPTIONS

from marconi_ext.engine_options import environment, to_flags

pytestmark = pytest.mark.engine


def launch(model: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "sglang.launch_server",
        *to_flags({"model_path": str(model), **OPTIONS}),
        *flags,
    ]
    return subprocess.run(command, capture_output=True, text=True, env=environment(cpu=True), timeout=240)


def test_help_shows_the_flags() -> None:
    command = [sys.executable, "-m", "sglang.launch_server", "--help"]
    shown = subprocess.run(
        command, capture_output=True, text=True, env=environment(cpu=True), timeout=240
    ).stdout
    for flag in (
        "--enable-marconi",
        "--marconi-eff-weight",
        "--marconi-bootstrap-window-size",
        "--marconi-bootstrap-multiplier",
        "--marconi-tuning-interval",
        "--marconi-checkpoints",
    ):
        assert flag in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--marconi-eff-weight", "much"), "--marconi-eff-weight: expected 'auto' or a number"),
        (("--marconi-checkpoints", "middle"), "--marconi-checkpoints: no checkpoint kind 'middle'"),
        (("--disable-radix-cache",), "needs the radix cache: drop --disable-radix-cache"),
        (
            ("--mamba-radix-cache-strategy", "no_buffer", "--disable-overlap-schedule"),
            "needs --mamba-radix-cache-strategy extra_buffer",
        ),
        (
            ("--mamba-radix-cache-strategy", "extra_buffer_lazy"),
            "use --mamba-radix-cache-strategy extra_buffer",
        ),
    ],
)
def test_refused_at_start(model: Path, flags: tuple[str, ...], message: str) -> None:
    ended = launch(model, "--enable-marconi", *flags)
    assert ended.returncode != 0
    assert message in ended.stderr


def test_yaml_config(model: Path, tmp_path: Path) -> None:
    """SGLang's --config file takes our flags too, and validates them the same way."""
    (tmp_path / "config.yaml").write_text("enable-marconi: true\nmarconi-eff-weight: -2\n")
    ended = launch(model, "--config", str(tmp_path / "config.yaml"))
    assert ended.returncode != 0
    assert "--marconi-eff-weight: expected 'auto' or a finite number of at least 0" in ended.stderr
