"""A progress line for replays: how many requests have ended, hit rate and TTFT so far, failures as they come."""

import statistics
from collections import deque

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from marconi_ext.output import stderr_console
from marconi_ext.replay.client import OK
from marconi_ext.replay.sender import Record

SHOWN_FAILURES = 5
RECENT = 200  # requests whose TTFT is shown
REFRESHES_PER_S = 2  # drawing holds up the sending, so seldom


class ReplayProgress:
    """Bars on stderr, one after another; use as a context manager."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[live]}"),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=stderr_console(), refresh_per_second=REFRESHES_PER_S)
        self._task = None
        self._failures = 0

    def __enter__(self):
        self._progress.start()
        return self

    def __exit__(self, *exc) -> None:
        self.close_bar()
        self._progress.stop()

    @property
    def console(self) -> Console:
        return self._progress.console

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def wait(self, what: str) -> None:
        """A bar that has no end yet."""
        self.close_bar()
        self._task = self._progress.add_task(f"  {what}", total=None, live="")

    def open_bar(self, name: str, total: int) -> None:
        """A bar for so many requests."""
        self.close_bar()
        self._task = self._progress.add_task(f"  {name}", total=total, live="")
        self._prompt = self._cached = 0
        self._ttft_ms: deque[float] = deque(maxlen=RECENT)

    def record(self, record: Record, in_flight: int | None = None) -> None:
        """A request has ended."""
        answer = record.answer
        if answer.status == OK:
            self._prompt += answer.prompt_tokens or len(record.prompt)  # of text as the server counts
            self._cached += answer.cached_tokens or 0
            if answer.ttft_s is not None:
                self._ttft_ms.append(1e3 * answer.ttft_s)
        else:
            self._failures += 1
            if self._failures <= SHOWN_FAILURES:
                self.say(f"  {answer.status}: {record.session_id}, turn {record.turn}: {answer.error}")
        self._progress.update(self._task, advance=1, live=_Live(self, in_flight))

    def close_bar(self) -> None:
        """Stop the current bar's clock."""
        if self._task is not None:
            task = self._progress.tasks[self._task]
            ended = {"total": task.completed or 1, "completed": task.completed or 1}
            self._progress.update(self._task, live=str(task.fields["live"]), **ended)
            self._progress.stop_task(self._task)
            self._task = None

    def live_text(self, in_flight: int | None) -> str:
        shown = [f"{100 * self._cached / self._prompt:.1f} % reused"] if self._prompt else []
        if self._ttft_ms:
            shown.append(f"TTFT P50 {statistics.median(self._ttft_ms):.0f} ms")
        if in_flight is not None:
            shown.append(f"{in_flight} open")
        if self._failures:
            shown.append(f"{self._failures} failed")
        return ", ".join(shown)


class _Live:
    """The line's text, made only when it is drawn."""

    def __init__(self, progress: ReplayProgress, in_flight: int | None) -> None:
        self._progress, self._in_flight = progress, in_flight

    def __str__(self) -> str:
        return self._progress.live_text(self._in_flight)

    def __format__(self, spec: str) -> str:
        return str(self)
