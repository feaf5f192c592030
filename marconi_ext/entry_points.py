"""What other installed packages add, found by entry points: policies, trace formats, recurrences and GPUs.

docs/extending.md shows one of each. Nothing of another package is imported until its name is asked for.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from marconi_ext.errors import BadInputError

POLICIES = "marconi.policies"
TRACES = "marconi.traces"
RECURRENCES = "marconi.recurrences"
GPUS = "marconi.gpus"

T = TypeVar("T")


def names(group: str) -> list[str]:
    """What installed packages offer in a group, in order of their names."""
    return sorted({point.name for point in entry_points(group=group)})


def load(group: str, name: str, *kinds: type[T]) -> T | None:
    """The object of that name, or None where no package has it.

    Raises BadInputError where two packages have it, where it can't be imported, or where it is of another kind.
    """
    found = list(entry_points(group=group, name=name))
    if not found:
        return None
    if len(found) > 1:
        raise BadInputError(f"{group}: {name!r} is offered by {' and by '.join(map(_package, found))}")
    try:
        made = found[0].load()
    except Exception as error:  # another package's code: anything may happen in it
        raise BadInputError(
            f"{group}: {name!r} of {_package(found[0])} can't be imported: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, kinds):
        raise BadInputError(
            f"{group}: {name!r} of {_package(found[0])} is a {type(made).__name__}, "
            f"not a {' or a '.join(kind.__name__ for kind in kinds)}"
        )
    return made


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "an unnamed package"
