"""The families that are live. A newcomer adds a file to this folder and a line here; another package, an entry point
in `marconi.recurrences` (docs/extending.md)."""

from __future__ import annotations

from functools import cache

from marconi_ext import entry_points

from .gdn import GDN
from .interface import Recurrence
from .mamba2 import MAMBA2

FAMILIES: tuple[Recurrence, ...] = (
    MAMBA2,
    GDN,
)


@cache
def families() -> tuple[Recurrence, ...]:
    """Ours, then those of other packages. Raises BadInputError where one of theirs can't be used."""
    names = entry_points.names(entry_points.RECURRENCES)
    others = (entry_points.load(entry_points.RECURRENCES, name, Recurrence) for name in names)
    return (*FAMILIES, *filter(None, others))


def family_of(backend: object) -> Recurrence | None:
    """The family that serves this linear attention backend of SGLang's, or None."""
    return next((family for family in families() if family.serves(backend)), None)


def hooks() -> tuple:
    """What the families patch; two may share a hook."""
    return tuple(dict.fromkeys(hook for family in families() for hook in family.hooks))
