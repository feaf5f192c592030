"""What is wrong with a trace file: collected and skipped, or refused."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from marconi_ext.errors import BadInputError

log = logging.getLogger(__name__)


class TraceError(BadInputError):
    """A trace that can't be read, or a broken line under strict reading."""


@dataclass(frozen=True)
class Problem:
    """One broken record: the file, its line (0: the file as a whole) and what is wrong."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else self.path
        return f"{where}: {self.message}"


@dataclass
class Problems:
    """Collects broken records while a trace is read.

    strict: raise TraceError at the first one instead of skipping it
    on_problem: called for each one, e.g. to print it
    """

    strict: bool = False
    on_problem: Callable[[Problem], None] | None = None
    found: list[Problem] = field(default_factory=list)

    def add(self, path: str, line: int, message: str) -> None:
        """Note a broken record. Raises TraceError when strict."""
        problem = Problem(path, line, message)
        if self.strict:
            raise TraceError(f"{problem} (without --strict it would be skipped)")
        self.found.append(problem)
        if self.on_problem:
            self.on_problem(problem)
        else:
            log.warning("skipped: %s", problem)
