"""What another release of SGLang changes of the names that the extension relies on."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from enum import StrEnum

from marconi_ext.releases.sources import Function, Sources
from marconi_ext.releases.uses import Use, UseKind

_FIELDS = "sglang/srt/arg_groups/fields/"


class Finding(StrEnum):
    """What became of a name, worst first."""

    GONE = "gone"
    PARAMETERS = "other parameters"
    UNDECIDED = "undecided option"
    BODY = "other body"
    DROPPED = "dropped option"


BREAKS = (Finding.GONE, Finding.PARAMETERS, Finding.UNDECIDED)
"""What somebody has to act on. Another body is to be read; a dropped option can't be given any more."""


@dataclass(frozen=True)
class Change:
    """One name that isn't as it was."""

    finding: Finding
    kind: str
    target: str
    where: str
    detail: str = ""


def compare(release: Sources, baseline: Sources, uses: list[Use]) -> list[Change]:
    """All changes, worst first.

    baseline: sources of a supported release
    uses: as `find_uses` gives them
    """
    order = list(Finding)
    names = {use.target for use in uses if use.kind is UseKind.PRIVATE}
    private = _names_in(release, names) | (names - _names_in(baseline, names))
    found = [change for use in uses if (change := _compare_one(release, baseline, use, private))]
    return sorted(found, key=lambda change: (order.index(change.finding), change.kind, change.target))


def compare_options(release: Sources, ours: Sources) -> list[Change]:
    """Options of the release that `sglang_hooks/options.py` doesn't decide, and decided ones that it lacks."""
    options, table = options_of(release), "sglang_hooks/options.py"
    matter, others = decided_options(ours)
    findings = (
        (Finding.GONE, matter - options),
        (Finding.UNDECIDED, options - matter - others),
        (Finding.DROPPED, others - options),
    )
    return [Change(finding, "option", name, table) for finding, names in findings for name in sorted(names)]


def options_of(release: Sources) -> set[str]:
    """Names of the fields of SGLang's ServerArgs."""
    trees = [ast.parse(text) for _, text in release.texts(_FIELDS)]
    classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    own = release.find("sglang.srt.server_args.ServerArgs")
    if isinstance(own, ast.ClassDef):
        classes.append(own)
    return {
        statement.target.id
        for cls in classes
        for statement in cls.body
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and not ast.unparse(statement.annotation).startswith("ClassVar")
    }


def decided_options(ours: Sources) -> tuple[set[str], set[str]]:
    """Options that touch the cache, and those without influence, read from the tables of options.py."""
    tree = ours.module("sglang_hooks.options")
    assert tree is not None
    matter: set[str] = set()
    others: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Option":
            matter.add(ast.literal_eval(node.args[0]))
        elif isinstance(node, ast.Dict):
            others.update(e.value for value in node.values for e in getattr(value, "elts", ()))
    return matter, others


def _compare_one(release: Sources, baseline: Sources, use: Use, private: set[str]) -> Change | None:
    def change(finding: Finding, detail: str = "") -> Change:
        return Change(finding, use.kind, use.target, use.where, detail)

    if use.kind is UseKind.PRIVATE:
        return None if use.target in private else change(Finding.GONE)
    node, was = release.find(use.target), baseline.find(use.target)
    if node is None:
        return change(Finding.GONE, "nothing calls our method then" if use.kind is UseKind.OVERRIDE else "")
    if use.kind is UseKind.IMPORT or not isinstance(node, Function):
        return None
    expected = use.parameters
    if expected is None and isinstance(was, Function) and use.kind is UseKind.OVERRIDE:
        expected = _parameters(was)
    if expected is not None and _parameters(node) != expected:
        return change(Finding.PARAMETERS, _difference(expected, _parameters(node)))
    if isinstance(was, Function) and _body(node) != _body(was):
        return change(Finding.BODY, f"not as in {baseline.label}: read it again")
    return None


def _parameters(function: Function) -> str:
    a = function.args
    every = [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]
    names = [argument.arg for argument in every if argument is not None]
    bound = any(ast.unparse(decorator) == "classmethod" for decorator in function.decorator_list)
    return " ".join(names[1:] if bound else names)


def _difference(expected: str, found: str) -> str:
    before, after = expected.split(), found.split()
    lost = [f"-{name}" for name in before if name not in after]
    new = [f"+{name}" for name in after if name not in before]
    return " ".join(lost + new) or f"in another order: {found}"


def _body(function: Function) -> str:
    """A function's statements without docstring, comments and layout, and how its parameters may be given."""
    a, body = function.args, function.body
    given = (
        f"{len(a.posonlyargs)} {len(a.args)} {a.vararg is not None} {len(a.kwonlyargs)} {a.kwarg is not None}"
    )
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    return "\n".join([given, *(ast.dump(statement) for statement in body)])


def _names_in(release: Sources, names: set[str]) -> set[str]:
    """Those of the names that stand anywhere in the release."""
    found: set[str] = set()
    for _, text in release.texts("sglang/"):
        found.update(name for name in names - found if name in text and re.search(rf"\b{name}\b", text))
    return found
