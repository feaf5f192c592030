"""One `pytest` run tests Triton kernels on the CPU and leaves every child process as it was.

Triton decides at import whether its kernels are interpreted, by TRITON_INTERPRET=1. A run that collects
tests/kernels therefore imports Triton with the variable set, then takes it out of the environment again, so
that engines and ahead-of-time compiles started in subprocesses see ordinary Triton, and so that the launchers
(which look at the variable) keep using the torch twins in this process. Tests of the kernels call the
`…_triton` functions. `pytest -m gpu` leaves Triton alone: those tests run the compiled kernels.
"""

import os
import sys
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("busy machine", deadline=None)  # no test fails for what else runs
hypothesis.settings.load_profile("busy machine")

TESTS = Path(__file__).parent
KERNEL_TESTS = TESTS / "kernels"
NEED_SGLANG = ("engine", "hooks", "kernels", "platform")
PURE = {
    TESTS / "hooks" / name
    for name in (
        "observe/test_resumable.py",
        "recurrence/test_piece_plan.py",
        "test_ledger.py",
        "test_stats.py",
    )
}
assert all(map(Path.exists, PURE)), "a pure file has moved"
HAS_SGLANG = find_spec("sglang") is not None


def needs_sglang(path: Path) -> bool:
    """Whether a file stands in a folder whose tests need SGLang or torch, all but a few pure files."""
    return (
        path.is_relative_to(TESTS)
        and path.relative_to(TESTS).parts[0] in NEED_SGLANG
        and path.suffix == ".py"
        and path not in PURE
    )


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Without SGLang (`make check`), leave those files out: they can't be imported."""
    return True if not HAS_SGLANG and needs_sglang(collection_path) else None


def _collects_kernel_tests(config: pytest.Config) -> bool:
    paths = [Path(config.invocation_params.dir, arg.split("::")[0]).resolve() for arg in config.args]
    return any(KERNEL_TESTS.is_relative_to(path) or path.is_relative_to(KERNEL_TESTS) for path in paths)


def pytest_configure(config: pytest.Config) -> None:
    if (
        config.option.markexpr == "gpu"
        or "triton" in sys.modules
        or not _collects_kernel_tests(config)
        or not find_spec("triton")
    ):
        return
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    import triton

    triton.knobs.propagate_env = False  # else the next line would set the variable again
    triton.knobs.runtime.interpret = True
    triton.knobs.propagate_env = True
    if before is None:
        del os.environ["TRITON_INTERPRET"]


@pytest.hookimpl(tryfirst=True)  # before pytest looks at -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what `make check` leaves out, so that `make test` runs the rest with `-m sglang`."""
    no_gpu = pytest.mark.skip(reason="runs compiled kernels: pytest -m gpu, on a machine with a GPU")
    for item in items:
        if needs_sglang(item.path) or item.get_closest_marker("engine"):
            item.add_marker(pytest.mark.sglang)
        if not HAS_SGLANG and item.get_closest_marker("sglang"):
            item.add_marker(pytest.mark.skip(reason="SGLang is not installed"))
        if config.option.markexpr != "gpu" and item.get_closest_marker("gpu"):
            item.add_marker(no_gpu)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that skips itself for want of a package would be run by neither `make check` nor `make test`."""
    report = yield
    if report.skipped and not HAS_SGLANG and "could not import" in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} needs a package of SGLang's: mark it with @pytest.mark.sglang"
    return report
