"""What people see of a demo: a progress bar while it runs, tables at its end."""

import statistics

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from marconi_ext.arms import Arm
from marconi_ext.client import OK
from marconi_ext.demo import ArmResult, Watcher, answers_differing
from marconi_ext.measure import Figures
from marconi_ext.output import stderr_console
from marconi_ext.replay import Record

SHOWN_FAILURES = 5


class ProgressWatcher(Watcher):
    """A bar with live hit rate and TTFT; use as a context manager."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[live]}"),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=stderr_console())
        self._task = None
        self._failures = 0

    def __enter__(self) -> "ProgressWatcher":
        self._progress.start()
        return self

    def __exit__(self, *exc) -> None:
        self._progress.stop()

    def starting(self, arm: Arm) -> None:
        self._progress.console.print(f"[bold]{arm.name}[/]: {arm.meaning}")
        self._task = self._progress.add_task("  starting the server", total=None, live="")

    def waiting(self, arm: Arm, waited_s: float) -> None:
        self._progress.update(self._task, live="")

    def workload(self, arm: Arm, name: str, turns: int) -> None:
        self._close()
        self._task = self._progress.add_task(f"  {name}", total=turns, live="")
        self._prompt = self._cached = 0
        self._ttft_ms: list[float] = []

    def record(self, record: Record) -> None:
        answer = record.answer
        if answer.status == OK:
            self._prompt += len(record.prompt)
            self._cached += answer.cached_tokens
            self._ttft_ms.append(1e3 * answer.ttft_s)
            live = f"{100 * self._cached / self._prompt:.1f} % reused, "
            live += f"TTFT P50 {statistics.median(self._ttft_ms):.0f} ms"
            self._progress.update(self._task, advance=1, live=live)
            return
        self._progress.advance(self._task)
        self._failures += 1
        if self._failures <= SHOWN_FAILURES:
            name = f"{record.session_id}, turn {record.turn}"
            self._progress.console.print(f"  failed: {name}: {answer.error}", markup=False, soft_wrap=True)

    def finished(self, result: ArmResult) -> None:
        self._close()

    def _close(self) -> None:
        """Stop the current bar's clock."""
        if self._task is not None:
            task = self._progress.tasks[self._task]
            self._progress.update(self._task, total=task.completed or 1, completed=task.completed or 1)
            self._progress.stop_task(self._task)


def print_tables(results: list[ArmResult]) -> None:
    """One table a workload, and one for all of them; a row an arm."""
    console = Console()
    if not console.is_terminal:  # a pipe or a file: no reason to squeeze the tables
        console = Console(width=100)
    names = list(dict.fromkeys(name for result in results for name in result.runs))
    for name in names:
        rows = [(r.arm.name, r.by_workload()[name]) for r in results if name in r.runs]
        console.print(figures_table(name, rows))
    if len(names) != 1:
        console.print(figures_table("total", [(r.arm.name, r.total()) for r in results]))
    console.print(
        "Ideal: what an unlimited attention-only cache would have reused. Loss: prompt tokens, in %, that it\n"
        "would have reused and this server computed again; first divergence (no state can lie at a branch\n"
        "before a second request takes it) and avoidable. Prefill: tokens computed / computed with the ideal.",
        style="dim",
        highlight=False,
    )
    for result in results[1:]:
        if differing := answers_differing(result, results[0]):
            console.print(f"{result.arm.name}: {differing} answers differ from {results[0].arm.name}'s")


def figures_table(title: str, rows: list[tuple[str, Figures]]) -> Table:
    """The figures of one workload."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("arm", no_wrap=True)
    headings = (
        ("prompt", "tokens"),
        ("cached", "tokens"),
        ("ideal", "tokens"),
        ("loss", "%"),
        ("first", "div. %"),
        ("avoid-", "able %"),
        ("prefill", "× ideal"),
        ("P50", "TTFT ms"),
        ("P95", "TTFT ms"),
    )
    failures = any(figures.failed or figures.unsent for _, figures in rows)
    for first, second in headings + ((("failed", "requests"),) if failures else ()):
        table.add_column(f"{first}\n{second}", justify="right")
    for name, figures in rows:
        cells = [
            f"{figures.prompt_tokens:,}",
            f"{figures.cached_tokens:,}",
            f"{figures.ideal_tokens:,}",
            f"[bold]{figures.state_limited_loss:.2f}[/]",
            f"{figures.first_divergence:.2f}",
            f"{figures.avoidable:.2f}",
            f"{figures.prefill_ratio:.2f}",
            f"{figures.ttft_p50_ms:.1f}",
            f"{figures.ttft_p95_ms:.1f}",
        ]
        if failures:
            cells.append(f"{figures.failed + figures.unsent:,}")
        table.add_row(name, *cells)
    return table
