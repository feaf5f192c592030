"""A server on the CPU platform that is asked for the kernel gets it: its stages pass our hooks, and outputs stay.

A CPU's BLAS may round one product in two ways, by where its operands lie in memory, so bits are compared where one
program computes both: tests/kernels/delta_rule/test_engine_stages.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from sglang_hooks.recurrence import form


def test_every_familys_trial_holds() -> None:
    script = Path(__file__).with_name("trial_on_cpu_platform.py")
    environment = os.environ | {form.VARIABLE: form.KERNEL}
    child = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=400
    )
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout.splitlines()[-1])
    assert set(found) == {"gdn", "kda", "lightning"}
    assert all(one["outputs"] < 1e-6 and one["error"] < 1e-5 for one in found.values()), found
