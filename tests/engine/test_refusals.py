"""Bad flags and combinations end the start with one message that names the flag and the fix."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from live_server import OPTIONS

from marconi_ext.servers.engine_options import environment, to_flags

pytestmark = pytest.mark.engine

SCRIPT = Path(__file__).with_name("forked_launches.py")
REFUSED = [
    (("--marconi-eff-weight", "much"), "--marconi-eff-weight: expected 'auto' or a number"),
    (("--marconi-checkpoints", "middle"), "--marconi-checkpoints: no checkpoint kind 'middle'"),
    (("--disable-radix-cache",), "needs the radix cache: drop --disable-radix-cache"),
    (
        ("--mamba-radix-cache-strategy", "no_buffer", "--disable-overlap-schedule"),
        "needs --mamba-radix-cache-strategy extra_buffer",
    ),
    (("--enable-streaming-session",), "use sessions without it"),
]
YAML = "enable-marconi: true\nmarconi-eff-weight: -2\n"

Ended = dict[tuple[str, ...], tuple[int, str]]
"""Exit code and output of a launch, by the flags that it adds."""


@pytest.fixture(scope="module")
def ended(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Every launch of this module, for one import of SGLang."""
    config = tmp_path_factory.mktemp("config") / "config.yaml"
    config.write_text(YAML)
    base = to_flags({"model_path": str(model), **OPTIONS})
    launches = {("--help",): ["--help"], ("--config",): [*base, "--config", str(config)]}
    launches |= {flags: [*base, "--enable-marconi", *flags] for flags, _ in REFUSED}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        input=json.dumps(list(launches.values())),
        stdout=subprocess.PIPE,
        text=True,
        env=environment(cpu=True),
        timeout=900,
        check=True,
    )
    return dict(zip(launches, json.loads(done.stdout), strict=True))


def test_help_shows_the_flags(ended: Ended) -> None:
    code, shown = ended["--help",]
    assert code == 0
    for flag in (
        "--enable-marconi",
        "--marconi-eff-weight",
        "--marconi-bootstrap-window-size",
        "--marconi-bootstrap-multiplier",
        "--marconi-tuning-interval",
        "--marconi-checkpoints",
    ):
        assert flag in shown


@pytest.mark.parametrize(("flags", "message"), REFUSED)
def test_refused_at_start(ended: Ended, flags: tuple[str, ...], message: str) -> None:
    code, output = ended[flags]
    assert code > 0
    assert message in output


def test_yaml_config(ended: Ended) -> None:
    """SGLang's --config file takes our flags too, and validates them the same way."""
    code, output = ended["--config",]
    assert code > 0
    assert "--marconi-eff-weight: expected 'auto' or a finite number of at least 0" in output
