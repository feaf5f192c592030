"""Which package may import what, and that `kernels/` never shadows PyPI's package of that name."""

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_base_package_imports_neither_torch_nor_sglang() -> None:
    code = (
        "import pkgutil, importlib, sys, marconi_ext\n"
        "for m in pkgutil.walk_packages(marconi_ext.__path__, 'marconi_ext.'):\n"
        "    importlib.import_module(m.name)\n"
        "print(sorted({'torch', 'sglang', 'triton'} & set(sys.modules)))"
    )
    assert run(code) == "[]"


@pytest.mark.sglang  # which brings the package along
def test_pypi_kernels_stays_importable_from_the_repo_root() -> None:
    path = run("import kernels; print(kernels.__file__)")
    assert "site-packages" in path
    assert not (REPO / "kernels" / "__init__.py").exists()


def test_our_kernels_have_their_own_name() -> None:
    assert run("import marconi_kernels; print(list(marconi_kernels.__path__)[0])").endswith("kernels")
