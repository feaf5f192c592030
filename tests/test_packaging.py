"""What a wheel holds: every package and every data file that the code needs, and no folder named `kernels`."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
FOLDERS = {"marconi_ext": "marconi_ext", "marconi_kernels": "kernels", "sglang_hooks": "sglang_hooks"}


def given(name: str) -> Any:
    """A literal argument of the call of `setup`."""
    tree = ast.parse((REPO / "setup.py").read_text(encoding="utf-8"))
    (call,) = [
        node.value for node in tree.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ]
    (value,) = [keyword.value for keyword in call.keywords if keyword.arg == name]
    return ast.literal_eval(value)


def test_every_package_is_in_the_wheel() -> None:
    found = set()
    for package, folder in FOLDERS.items():
        for file in (REPO / folder).rglob("*.py"):
            found.add(".".join([package, *file.relative_to(REPO / folder).parent.parts]))
    assert sorted(found) == sorted(given("packages"))


def test_every_data_file_is_in_the_wheel() -> None:
    data = given("package_data")
    for package, folder in FOLDERS.items():
        held = {file for pattern in data[package] for file in (REPO / folder).glob(pattern)}
        files = (file for file in (REPO / folder).rglob("*") if file.is_file())
        assert not {file for file in files if file.suffix not in (".py", ".pyc")} - held
