"""What stands in place of SGLang's functions, by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sglang_hooks.hooks import Hook


def hooked(hooks: Iterable[Hook], target: str) -> Callable[..., Any]:
    """The function of the one hook whose target ends so."""
    (found,) = (hook.function for hook in hooks if hook.target.endswith(f".{target}"))
    return found
