"""A trace named on the command line: a file, a folder or `synthetic:NAME`, with progress shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marconi_ext.errors import BadInputError
from marconi_ext.output import stderr_console
from marconi_ext.traces.problems import Problem
from marconi_ext.traces.read import STANDARD_INPUT, read_trace
from marconi_ext.traces.request import Request
from marconi_ext.traces.timeline import Arrivals

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SYNTHETIC = "synthetic:"
SHOWN_PROBLEMS = 10


@dataclass(frozen=True)
class Reading:
    """How a trace is read: the options of `marconi trace`."""

    format: str = "auto"
    tokenizer: str = "tekken"
    strict: bool = False
    seed: int = 0
    sessions_per_s: float = 1.0
    response_s: float = 5.0

    def open(
        self,
        trace: str,
        *,
        template: str | None = None,
        limit: int | None = None,
        on_problem: Callable[[Problem], None] | None = None,
    ) -> Iterator[Request]:
        """As `open_source`."""
        return open_source(trace, template=template, limit=limit, on_problem=on_problem, **asdict(self))


def open_source(
    trace: str,
    *,
    format: str = "auto",
    tokenizer: str = "tekken",
    template: str | None = None,
    strict: bool = False,
    limit: int | None = None,
    seed: int = 0,
    sessions_per_s: float = 1.0,
    response_s: float = 5.0,
    on_problem: Callable[[Problem], None] | None = None,
) -> Iterator[Request]:
    """Open what `--trace` names. Raises BadInputError for what can't be opened."""
    check_source(trace, sessions_per_s, response_s)
    if trace.startswith(SYNTHETIC):
        from itertools import islice

        from marconi_ext.traces.synthetic import WRITTEN, synthetic

        name = trace.removeprefix(SYNTHETIC)
        sizes: dict[str, Any] = {}
        if template:
            if name not in WRITTEN:
                raise BadInputError(f"--template: of synthetic traffic for {', '.join(WRITTEN)} alone")
            sizes = {"template": template}
        return islice(synthetic(name, seed=seed, **sizes), limit)
    return read_trace(
        trace,
        format=format,
        tokenizer=tokenizer,
        template=template,
        strict=strict,
        limit=limit,
        arrivals=Arrivals(seed, sessions_per_s, response_s),
        on_problem=on_problem,
    )


def check_source(trace: str, sessions_per_s: float = 1.0, response_s: float = 5.0) -> None:
    """Raise BadInputError for what can't be opened, before anything else is done for it."""
    if not (0 < sessions_per_s < math.inf and 0 <= response_s < math.inf):
        raise BadInputError("--sessions-per-s must be positive and --response-s at least 0")
    if trace.startswith(SYNTHETIC):
        from marconi_ext.traces.synthetic import check_name

        check_name(trace.removeprefix(SYNTHETIC))
    elif trace != STANDARD_INPUT and not Path(trace).exists():
        raise BadInputError(
            f"trace {trace}: no such file or folder (standard input is -, synthetic traffic is synthetic:NAME)"
        )


class Reporter:
    """Counts requests on a progress line and prints the first broken records."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self.problems = 0

    def problem(self, problem: Problem) -> None:
        self.problems += 1
        if self.problems <= SHOWN_PROBLEMS:
            self._progress.console.print(f"skipped: {problem}", markup=False, highlight=False, soft_wrap=True)
        elif self.problems == SHOWN_PROBLEMS + 1:
            self._progress.console.print("skipped: more of them; only their number is shown at the end")

    def count(self, requests: Iterable[Request]) -> Iterator[Request]:
        for request in requests:
            self.one(request)
            yield request

    def one(self, request: Request) -> None:
        self._progress.advance(self._task)


@contextmanager
def reporting() -> Iterator[Reporter]:
    """A progress line on stderr while a trace is read."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.completed:,} requests"), TimeElapsedColumn()
    with Progress(*columns, console=stderr_console(), transient=True) as progress:
        yield Reporter(progress, progress.add_task("reading"))
