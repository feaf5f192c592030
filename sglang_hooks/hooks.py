"""A patched name of SGLang: how it is described, compared with the installed SGLang, and put in place."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Hook:
    """One patched name.

    kind: "after" | "around" - as SGLang's HookRegistry calls them
    parameters: names of the original's parameters in the release we support; None: bound at runtime
    """

    target: str
    kind: str
    function: Callable[..., Any]
    why: str
    parameters: str | None


class SeamError(RuntimeError):
    """SGLang is not as the hooks expect it."""


def check_signatures(hooks: Iterable[Hook]) -> list[str]:
    """Compare each target with the installed SGLang. Returns: one line a difference, empty if all agree."""
    problems = []
    for hook in hooks:
        if hook.parameters is None:
            continue
        try:
            original = inspect.unwrap(pkgutil.resolve_name(hook.target))
        except (ImportError, AttributeError) as error:
            problems.append(f"{hook.target}: not found ({error})")
            continue
        found = " ".join(inspect.signature(original).parameters)
        if found != hook.parameters:
            problems.append(f"{hook.target}: parameters {found!r}, expected {hook.parameters!r}")
    return problems


def install(hooks: Iterable[Hook], *, apply: bool = True) -> None:
    """Register the hooks with SGLang; with `apply`, patch at once and verify.

    Raises: SeamError naming each target that could not be patched.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    hooks = [hook for hook in hooks if hook.target not in HookRegistry._patched]
    for hook in hooks:
        HookRegistry.register(hook.target, hook.function, HookType(hook.kind))
    if not apply:
        return
    HookRegistry.apply_hooks()
    missing = [hook.target for hook in hooks if hook.target not in HookRegistry._patched]
    if missing:
        raise SeamError("could not patch " + ", ".join(missing))
