"""The parts of the extension that run in this process, by class; none where SGLang serves as stock.

Imports nothing: every hook asks here, in processes that need nothing of it as well.
"""

from __future__ import annotations

from typing import TypeVar

P = TypeVar("P")

_running: dict[type, object] = {}


def running(kind: type[P]) -> P | None:
    """The part of exactly this class, or None."""
    part = _running.get(kind)
    return part if isinstance(part, kind) else None


def start(*parts: object) -> None:
    """From now on these run; one of a class that runs already takes its place."""
    _running.update({type(part): part for part in parts})
