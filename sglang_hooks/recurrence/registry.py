"""The families that are live, and what becomes of a model. A newcomer adds a file to this folder and a line here;
another package, an entry point in `marconi.recurrences` (docs/extending.md)."""

from __future__ import annotations

from functools import cache

from marconi_ext import entry_points

from .gdn import GDN
from .interface import Recurrence
from .kda import KDA
from .lightning import LIGHTNING
from .mamba2 import MAMBA2
from .short_conv import SHORT_CONV

FAMILIES: tuple[Recurrence, ...] = (
    MAMBA2,
    GDN,
    KDA,
    LIGHTNING,
    SHORT_CONV,
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


def family_named(architecture: str) -> Recurrence | None:
    """The family in whose table the architecture stands, live or refused; None: in none."""
    return next((f for f in families() if architecture in f.architectures or architecture in f.refused), None)


def why_stock(architecture: str) -> str | None:
    """Why a model with recurrent states is served as stock, as the table of models has it, or None."""
    family = family_named(architecture)
    if family is None:
        return "it isn't in the table of models whose states are known to be exact (docs/models.md)"
    return family.refused.get(architecture)


def needs_no_tracking(architecture: str) -> bool:
    """Whether the extension serves this model although SGLang tracks none of its states during decode."""
    return any(architecture in family.untracked for family in families())


def hooks() -> tuple:
    """What the families patch; two may share a hook."""
    return tuple(dict.fromkeys(hook for family in families() for hook in family.hooks))
