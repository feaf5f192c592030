"""Bit equality on hardware rests on the same matrix instructions and the same fused multiply-adds: count them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def counts():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("arithmetic_of_both.py")
    child = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=500
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_same_matrix_instructions_adds_and_fused_multiply_adds(counts, target):
    """The carry is multiplied and added apart on sm_80 and sm_90, and fused on sm_100: in both kernels alike."""
    assert counts[target]["ours"] == counts[target]["engine"]
    assert any("mma" in name for name in counts[target]["ours"])
