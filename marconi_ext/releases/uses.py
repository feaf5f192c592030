"""What the extension takes from SGLang: read from the extension's own sources, so that no list can go stale."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from marconi_ext.releases.sources import Function, Sources, absolute

SGLANG = "sglang"


class UseKind(StrEnum):
    """How the extension depends on a name."""

    HOOK = "patched"
    IMPORT = "imported"
    OVERRIDE = "overridden"
    PRIVATE = "private name"


@dataclass(frozen=True, order=True)
class Use:
    """One name of SGLang's that the extension relies on.

    target: dotted name; a bare name for PRIVATE
    parameters: those that a patched function must have, None where nothing is expected
    where: our file
    """

    kind: UseKind
    target: str
    where: str
    parameters: str | None = None


def find_uses(ours: Sources, baseline: Sources, package: str = "sglang_hooks") -> list[Use]:
    """All uses, sorted.

    ours: the extension's sources
    baseline: those of a supported release, which tell which of our methods override one of SGLang's
    """
    found: set[Use] = set()
    written: set[str] = set()
    read: dict[str, str] = {}
    for path in ours.files:
        if not path.startswith(package + "/"):
            continue
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        tree = ours.module(module)
        assert tree is not None
        found.update(_hooks(tree, path, _constants(ours, module)))
        found.update(_imports(tree, path, ours.package(module)))
        found.update(_overrides(ours, baseline, tree, module, path))
        written |= _names_made(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and _is_private(node.attr):
                read.setdefault(node.attr, path)
    found.update(Use(UseKind.PRIVATE, name, path) for name, path in read.items() if name not in written)
    return sorted(found, key=lambda use: (use.kind, use.target, use.where))


def _hooks(tree: ast.Module, path: str, constants: dict[str, str]) -> Iterator[Use]:
    for node in ast.walk(tree):
        loops = {}
        calls = [node]
        if isinstance(node, ast.GeneratorExp) and isinstance(node.generators[0].iter, ast.Tuple):
            loops = {ast.unparse(node.generators[0].target): node.generators[0].iter.elts}
            calls = [node.elt]
        for call in calls:
            if not (isinstance(call, ast.Call) and ast.unparse(call.func) == "Hook" and call.args):
                continue
            asked = next((k.value for k in call.keywords if k.arg == "parameters"), None)
            parameters = ast.literal_eval(asked) if isinstance(asked, ast.Constant) else None
            names: dict[str, list[str]] = {
                name: [value for e in elements for value in _strings(e, constants, {})]
                for name, elements in loops.items()
            }
            for target in _strings(call.args[0], constants, names):
                yield Use(UseKind.HOOK, target, path, parameters)


def _strings(node: ast.expr, constants: dict[str, str], loops: dict[str, list[str]]) -> list[str]:
    """The values of a string that is made of constants and of a loop's variable; none where that can't be told."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.Name):
        return [constants[node.id]] if node.id in constants else loops.get(node.id, [])
    if not isinstance(node, ast.JoinedStr):
        return []
    found = [""]
    for part in node.values:
        values = _strings(part.value if isinstance(part, ast.FormattedValue) else part, constants, loops)
        found = [head + tail for head in found for tail in values]
    return found


def _constants(ours: Sources, module: str) -> dict[str, str]:
    """Strings that a module binds to names at its top, or imports from another module of ours that does."""
    found: dict[str, str] = {}
    tree = ours.module(module)
    assert tree is not None
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                name = alias.asname or alias.name
                home, _, there = ours.home(f"{module}.{name}").rpartition(".")
                if home != module and ours.module(home) is not None and there.isupper():
                    values = _constants(ours, home)
                    found |= {name: values[there]} if there in values else {}
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            values_of = _strings(statement.value, found, {})
            if values_of:
                found[statement.targets[0].id] = values_of[0]
    return found


def _imports(tree: ast.Module, path: str, package: str) -> Iterator[Use]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, package)
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            if target.split(".")[0] == SGLANG:
                yield Use(UseKind.IMPORT, target, path)


def _overrides(ours: Sources, baseline: Sources, tree: ast.Module, module: str, path: str) -> Iterator[Use]:
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        theirs = [base for base in _bases(ours, f"{module}.{node.name}") if base.split(".")[0] == SGLANG]
        for method in node.body:
            if not isinstance(method, Function) or method.name == "__init__":
                continue
            for base in theirs:
                if baseline.method(base, method.name) is not None:
                    yield Use(UseKind.OVERRIDE, f"{base}.{method.name}", path)
                    break


def _bases(ours: Sources, target: str) -> list[str]:
    """The classes of other packages that a class of ours inherits from, through ours."""
    found = []
    for name in ours.bases(target):
        node = ours.find(name)
        assert isinstance(node, ast.ClassDef)
        module = name.rpartition(".")[0]
        for base in node.bases:
            home = ours.home(f"{module}.{ast.unparse(base)}")
            if not isinstance(ours.find(home), ast.ClassDef):
                found.append(home)
    return found


def _names_made(tree: ast.Module) -> set[str]:
    """Names that our own code defines: functions, classes, attributes that are set, fields and imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                found.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Assign):
            found.update(n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _is_private(node.value):
            found.add(node.value)  # __slots__ and setattr
    return found


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")
