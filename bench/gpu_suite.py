"""All of the kernels that needs a GPU, in one command: `python bench/gpu_suite.py [FILE.json]`, under 10 minutes.

Runs the gpu-marked tests (correctness, bit equality with the engine's kernel, CUDA graph), then the two overhead
benchmarks, then the tests under compute-sanitizer where it is installed; each with its share of the time. Writes
one JSON with the hardware's name. No benchmark is run if the tests fail. Exit code 1 if anything failed.
The live engine on a GPU: `bench/gpu_live.py` for its answers, `bench/no_reuse_overhead.py --model-path` for its cost.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from records import origin

ROOT = Path(__file__).parent.parent
LIMITS_S = {"tests": 200, "device_time": 40, "overhead": 180, "compute_sanitizer": 140}  # 560 s in all


def step(name: str, command: list[str], **environment: str) -> dict:
    """Run one part from the repository's root, within its limit; keep the end of what it printed."""
    began = time.monotonic()
    print(f"==> {name}: {' '.join(command)}", flush=True)
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | environment
    try:
        child = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMITS_S[name]
        )
        code, output = child.returncode, child.stdout + child.stderr
    except subprocess.TimeoutExpired as expired:
        code, output = 124, str(expired)
    print(output[-2000:], flush=True)
    return {"rc": code, "seconds": round(time.monotonic() - began, 1), "output_tail": output[-6000:]}


def main() -> int:
    file = Path(sys.argv[1] if len(sys.argv) > 1 else "gpu_suite.json").resolve()
    if not torch.cuda.is_available():
        print("gpu_suite: torch sees no GPU here", file=sys.stderr)
        return 2
    tests = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/kernels"]
    steps = {"tests": step("tests", tests)}
    records = []
    if steps["tests"]["rc"] == 0:
        steps["device_time"] = step("device_time", [sys.executable, "bench/device_time.py"])
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "overhead.json")
            bench = [
                sys.executable,
                "bench/prefill_overhead.py",
                str(out),
                "--extend",
                "8192",
                "--repeats",
                "15",
            ]
            steps["overhead"] = step("overhead", bench)
            records = json.loads(out.read_text()) if out.exists() else []
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is not None:
        # Without the caching allocator, so that an access past a tensor leaves its allocation.
        checked = [sanitizer, "--error-exitcode", "9", *tests, "-k", "out_of_range or conv_is"]
        steps["compute_sanitizer"] = step("compute_sanitizer", checked, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    versions, revision, machine = origin()
    result = {
        "bench": "gpu_suite",
        "versions": versions,
        "machine": machine,
        "git_revision": revision,
        "compute_sanitizer_found": sanitizer is not None,
        "steps": steps,
        "records": records,
    }
    file.write_text(json.dumps(result, indent=2) + "\n")
    failed = [name for name, outcome in steps.items() if outcome["rc"] != 0]
    print(f"{machine}: {'failed: ' + ', '.join(failed) if failed else 'all passed'}; wrote {file}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
