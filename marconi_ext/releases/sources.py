"""The sources of a release of SGLang, from a wheel or a folder, and where a dotted name leads in them."""

from __future__ import annotations

import ast
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from marconi_ext.errors import BadInputError

Function = ast.FunctionDef | ast.AsyncFunctionDef
_MAX_HOPS = 20  # re-exports that are followed from one name; more is a circle


@dataclass
class Sources:
    """A tree of Python modules.

    label: what it is called in tables, such as "0.5.22"
    files: path inside the tree ("sglang/srt/x.py") → reads its text
    """

    label: str
    files: dict[str, Callable[[], str]]
    _trees: dict[str, ast.Module | None] = field(default_factory=dict)

    def module(self, name: str) -> ast.Module | None:
        """A module's syntax tree; None if there is no such module."""
        if name not in self._trees:
            stem = name.replace(".", "/")
            path = next((p for p in (f"{stem}.py", f"{stem}/__init__.py") if p in self.files), None)
            self._trees[name] = None if path is None else ast.parse(self.files[path]())
        return self._trees[name]

    def package(self, module: str) -> str:
        """The package that a module's relative imports start from: itself, if it is one."""
        is_package = f"{module.replace('.', '/')}/__init__.py" in self.files
        return module if is_package else module.rpartition(".")[0]

    def texts(self, prefix: str = "") -> Iterator[tuple[str, str]]:
        """(path, text) of all files whose path begins with the prefix."""
        for path, read in self.files.items():
            if path.startswith(prefix):
                yield path, read()

    def find(self, target: str) -> ast.AST | None:
        """What a dotted name leads to: a module, class, function, or the statement that binds it; None if nothing."""
        return self._find(target, _MAX_HOPS)

    def home(self, target: str) -> str:
        """The dotted name at which a re-exported name is defined; the name itself where that can't be told."""
        for _ in range(_MAX_HOPS):
            module, _, name = target.rpartition(".")
            source = self._imported_from(module, name) if self.module(module) is not None else None
            if source is None:
                break
            target = source
        return target

    def bases(self, target: str) -> list[str]:
        """A class and all that it inherits from, as dotted names: itself first, then breadth first."""
        found: list[str] = []
        queue = [self.home(target)]
        while queue:
            name = queue.pop(0)
            node = self.find(name)
            if name in found or not isinstance(node, ast.ClassDef):
                continue
            found.append(name)
            module = name.rpartition(".")[0]
            for base in node.bases:
                written = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
                queue.append(self.home(f"{module}.{written}"))
        return found

    def method(self, cls: str, name: str) -> Function | None:
        """A method of a class or of what it inherits from."""
        for base in self.bases(cls):
            node = self.find(base)
            assert isinstance(node, ast.ClassDef)
            for statement in _flat(node.body):
                if isinstance(statement, Function) and statement.name == name:
                    return statement
        return None

    def _find(self, target: str, hops: int) -> ast.AST | None:
        if hops == 0:
            return None
        parts = target.split(".")
        for cut in range(len(parts), 0, -1):
            node: ast.AST | None = self.module(".".join(parts[:cut]))
            if node is None:
                continue
            if cut == len(parts):
                return node
            source = self._imported_from(".".join(parts[:cut]), parts[cut])
            if source is not None:
                return self._find(".".join([source, *parts[cut + 1 :]]), hops - 1)
            for number, part in enumerate(parts[cut:], cut):
                if isinstance(node, ast.ClassDef) and number == len(parts) - 1:
                    return self.method(".".join(parts[:number]), part) or _bound(node.body, part)
                node = _bound(node.body, part) if isinstance(node, ast.Module | ast.ClassDef) else None
            return node
        return None

    def _imported_from(self, module: str, name: str) -> str | None:
        """The dotted name that a module's `import` gives this name, if it is an import."""
        tree = self.module(module)
        if tree is None:
            return None
        for statement in _flat(tree.body):
            if isinstance(statement, ast.ImportFrom):
                base = absolute(statement, self.package(module))
                for alias in statement.names:
                    if (alias.asname or alias.name) == name and f"{base}.{alias.name}" != f"{module}.{name}":
                        return f"{base}.{alias.name}"
        return None


def absolute(statement: ast.ImportFrom, package: str) -> str:
    """The module that `from … import` names, inside this package."""
    if not statement.level:
        return statement.module or ""
    parents = package.split(".")
    return ".".join(
        [*parents[: len(parents) - statement.level + 1], *([statement.module] if statement.module else [])]
    )


def from_wheel(path: Path) -> Sources:
    """Raises: BadInputError if the file is no wheel that holds SGLang."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise BadInputError(f"{path} is no wheel: {error}") from None
    names = [name for name in archive.namelist() if name.startswith("sglang/") and name.endswith(".py")]
    if not names:
        raise BadInputError(
            f"{path} holds no SGLang: give a wheel of it, as pip download sglang==VERSION gets"
        )
    version = path.name.split("-")[1] if path.name.count("-") > 1 else path.name
    return Sources(version, {name: lambda name=name: archive.read(name).decode("utf-8") for name in names})  # type: ignore[misc]


def from_folder(folder: Path, label: str, package: str = "sglang") -> Sources:
    """folder: what holds the package's folder, such as site-packages or a checkout's `python`.

    Raises: BadInputError if it doesn't.
    """
    files = sorted((folder / package).rglob("*.py"))
    if not files:
        raise BadInputError(f"{folder} has no folder {package} with Python files")

    def reader(path: Path) -> Callable[[], str]:
        return lambda: path.read_text(encoding="utf-8")

    return Sources(label, {str(path.relative_to(folder)): reader(path) for path in files})


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a body, with those under `if`, `try` and `with`."""
    for statement in body:
        yield statement
        for name in ("body", "orelse", "finalbody"):
            if isinstance(statement, ast.If | ast.Try | ast.With):
                yield from _flat(getattr(statement, name, []))
        if isinstance(statement, ast.Try):
            for handler in statement.handlers:
                yield from _flat(handler.body)


def _bound(body: list[ast.stmt], name: str) -> ast.AST | None:
    """The statement that binds a name in a body."""
    for statement in _flat(body):
        if isinstance(statement, Function | ast.ClassDef) and statement.name == name:
            return statement
        if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
            if name in names:
                return statement
        if isinstance(statement, ast.Import | ast.ImportFrom):
            for alias in statement.names:
                if (alias.asname or alias.name.split(".")[0]) == name:
                    return statement
    return None
