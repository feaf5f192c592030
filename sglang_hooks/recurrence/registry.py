"""The families that are live. A newcomer adds a file to this folder and a line here."""

from __future__ import annotations

from .gdn import GDN
from .interface import Recurrence
from .mamba2 import MAMBA2

FAMILIES: tuple[Recurrence, ...] = (
    MAMBA2,
    GDN,
)


def family_of(backend: object) -> Recurrence | None:
    """The family that serves this linear attention backend of SGLang's, or None."""
    return next((family for family in FAMILIES if family.serves(backend)), None)


def hooks() -> tuple:
    """What the families patch; two may share a hook."""
    return tuple(dict.fromkeys(hook for family in FAMILIES for hook in family.hooks))
