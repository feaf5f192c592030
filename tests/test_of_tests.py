"""Tests can be found and read: a file and a name of their own each, short ones, and no private fields of ours."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
FILES = sorted((REPO / "tests").rglob("*.py"))
OURS = [file for folder in ("marconi_ext", "sglang_hooks", "bench") for file in (REPO / folder).rglob("*.py")]
LETTERS = 60


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and len(name) > 1


def names_that_are_ours() -> set[str]:
    """Private names that our code defines: functions, methods, fields, constants."""
    found: set[str] = set()
    for file in OURS:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                    found.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
    return {name for name in found if private(name)}


TREES = {file.relative_to(REPO).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in FILES}


def test_files_have_names_of_their_own() -> None:
    """pytest imports test files by their names alone."""
    counted = Counter(file.name for file in FILES if file.name.startswith("test_"))
    assert not [name for name, count in counted.items() if count > 1]


def test_names_are_short_and_hide_no_other() -> None:
    wrong = []
    for file, tree in TREES.items():
        names = Counter(node.name for node in tree.body if isinstance(node, ast.FunctionDef))
        wrong += [f"{file}: {name}" for name, n in names.items() if len(name) > LETTERS or n > 1]
    assert not wrong


def test_no_private_field_of_ours_is_read() -> None:
    ours = names_that_are_ours()
    poked = [
        f"{file}:{node.lineno}: {ast.unparse(node)}"
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in ours
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]
    assert not poked
