"""One `pytest` run tests Triton kernels on the CPU and leaves every child process as it was.

Triton decides at import whether its kernels are interpreted, by TRITON_INTERPRET=1. A run that collects
tests/kernels therefore imports Triton with the variable set, then takes it out of the environment again, so
that engines and ahead-of-time compiles started in subprocesses see ordinary Triton, and so that the launchers
(which look at the variable) keep using the torch twins in this process. Tests of the kernels call the
`…_triton` functions. `pytest -m gpu` leaves Triton alone: those tests run the compiled kernels.
"""

import os
import sys
from pathlib import Path

import pytest

KERNEL_TESTS = Path(__file__).parent / "kernels"


def _collects_kernel_tests(config: pytest.Config) -> bool:
    paths = [Path(config.invocation_params.dir, arg.split("::")[0]).resolve() for arg in config.args]
    return any(KERNEL_TESTS.is_relative_to(path) or path.is_relative_to(KERNEL_TESTS) for path in paths)


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr == "gpu" or "triton" in sys.modules or not _collects_kernel_tests(config):
        return
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    import triton

    triton.knobs.propagate_env = False  # else the next line would set the variable again
    triton.knobs.runtime.interpret = True
    triton.knobs.propagate_env = True
    if before is None:
        del os.environ["TRITON_INTERPRET"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.markexpr == "gpu":
        return
    skip = pytest.mark.skip(reason="runs compiled kernels: pytest -m gpu, on a machine with a GPU")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
