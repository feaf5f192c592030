"""Imports between rooms run one way, and no file imports itself round a circle.

An import counts wherever it stands: at the top, inside a function, or for type checkers only.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
PACKAGES = {"marconi_ext": "marconi_ext", "marconi_kernels": "kernels", "sglang_hooks": "sglang_hooks"}

# What each room of marconi_ext may import besides itself, `errors`, `output` and the package's version.
ROOMS = {
    "errors": "",
    "output": "",
    "entry_points": "",
    "policies": "entry_points",
    "routing": "",
    "profiles": "entry_points policies",
    "releases": "",
    "config": "policies",
    "traces": "entry_points",
    "results": "traces",
    "servers": "config results",
    "replay": "results servers traces",
    "simulator": "policies profiles results routing traces",
    "models": "",
    "report": "results",
    "watch": "servers",
    "commands": "config models policies profiles releases replay report results routing servers simulator traces watch",
    "cli": "commands",
    "__main__": "cli",
}
# The same between packages, and inside marconi_kernels, whose shared files stand below the ops.
BELOW = {
    "marconi_ext": {"marconi_kernels"},  # only what `marconi kernels` reports
    "marconi_kernels": set(),
    "sglang_hooks": {"marconi_ext", "marconi_kernels"},
}
KERNEL_OPS = {"mamba2", "delta_rule"}
Arrow = tuple[str, str]
"""Importing module, imported module."""


def find_modules() -> dict[str, Path]:
    found = {}
    for package, folder in PACKAGES.items():
        for file in (REPO / folder).rglob("*.py"):
            parts = [package, *file.relative_to(REPO / folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def arrows_of(module: str, text: str, *, is_package: bool, known: set[str]) -> Iterator[Arrow]:
    """All imports of known modules in a module's text."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            names = [f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names]
        else:
            continue
        for name in names:
            if name in known and name != module:
                yield module, name


def find_circle(arrows: list[Arrow]) -> list[str]:
    """The modules of one circle in order, or an empty list."""
    graph: dict[str, set[str]] = {}
    for source, target in arrows:
        graph.setdefault(source, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.fixture(scope="module")
def arrows() -> list[Arrow]:
    modules = find_modules()
    known = set(modules)
    return [
        arrow
        for module, file in modules.items()
        for arrow in arrows_of(
            module, file.read_text(encoding="utf-8"), is_package=file.name == "__init__.py", known=known
        )
    ]


def test_rooms_of_marconi_ext_import_one_way(arrows: list[Arrow]) -> None:
    wrong = []
    for source, target in arrows:
        if not (source.startswith("marconi_ext.") and target.startswith("marconi_ext.")):
            continue
        room, other = source.split(".")[1], target.split(".")[1]
        if other not in {room, "errors", "output", *ROOMS[room].split()}:
            wrong.append(f"{source} imports {target}")
        if room == "errors" or (room == "output" and other == "output"):
            wrong.append(f"{source} imports {target}")
    assert not wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_of_a_package_draw_no_circle(arrows: list[Arrow], package: str) -> None:
    rooms = [
        tuple(".".join(module.split(".")[:2]) for module in arrow)
        for arrow in arrows
        if all(module.startswith(f"{package}.") for module in arrow)
    ]
    assert rooms and find_circle([(room, other) for room, other in rooms if room != other]) == []


def test_rooms_are_listed_from_the_bottom() -> None:
    seen: set[str] = set()
    for room, below in ROOMS.items():
        assert set(below.split()) <= seen, f"{room} may import what stands above it"
        seen.add(room)


def test_packages_import_one_way(arrows: list[Arrow]) -> None:
    wrong = []
    for source, target in arrows:
        package, other = source.split(".")[0], target.split(".")[0]
        if package == other:
            continue
        only_reports = package != "marconi_ext" or (
            source.startswith("marconi_ext.commands.kernels") and target.startswith("marconi_kernels.report")
        )
        if other not in BELOW[package] or not only_reports:
            wrong.append(f"{source} imports {target}")
    assert not wrong


def test_kernels_of_one_op_know_no_other(arrows: list[Arrow]) -> None:
    allowed = {"torch_twins": KERNEL_OPS, "report": KERNEL_OPS}
    folders = {*KERNEL_OPS, *allowed}
    wrong = []
    for source, target in arrows:
        if not (source.startswith("marconi_kernels.") and target.startswith("marconi_kernels.")):
            continue
        room, other = source.split(".")[1], target.split(".")[1]
        if other in folders - {room} - allowed.get(room, set()):
            wrong.append(f"{source} imports {target}")
    assert not wrong


def test_no_circle(arrows: list[Arrow]) -> None:
    assert len(arrows) > 300, "the arrows weren't found"
    assert find_circle(arrows) == []


def test_a_circle_is_found() -> None:
    known = {"p", "p.a", "p.b", "p.c"}
    texts = {
        "p.a": "from p import b",
        "p.b": "def f():\n    from .c import x",
        "p.c": "if TYPE_CHECKING:\n    import p.a",
    }
    found = [a for m, t in texts.items() for a in arrows_of(m, t, is_package=False, known=known)]
    assert found == [("p.a", "p.b"), ("p.b", "p.c"), ("p.c", "p.a")]
    assert set(find_circle(found)) == {"p.a", "p.b", "p.c"}
    assert find_circle(found[:2]) == []
