"""A progress line for replays: how many requests have ended, hit rate and TTFT so far, failures as they come."""

import statistics
import time
from collections import deque
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from marconi_ext.output import stderr_console
from marconi_ext.replay.client import OK
from marconi_ext.replay.sender import Record

SHOWN_FAILURES = 5
RECENT = 200  # requests whose TTFT is shown
SAID_S = 30.0  # between lines where stderr is no terminal: a log, or under nohup
REFRESHES_PER_S = 2  # drawing holds up the sending, so seldom


class ReplayProgress:
    """Bars on stderr, one after another, or a line now and then where that is no terminal; a context manager."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[live]}"),
            TimeElapsedColumn(),
        )
        console = stderr_console()
        self._lines = not console.is_terminal
        self._progress = Progress(
            *columns, console=console, refresh_per_second=REFRESHES_PER_S, disable=self._lines
        )
        self._task: TaskID | None = None
        self._failures = 0
        self._all = self._ended = 0
        self._first_s: float | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close_bar()
        self._progress.stop()

    @property
    def console(self) -> Console:
        return self._progress.console

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def expect(self, requests: int) -> None:
        """So many requests are to come in all bars together: tells how long it will take."""
        self._all = requests

    def wait(self, what: str) -> None:
        """A bar that has no end yet."""
        self.close_bar()
        if self._lines:
            self.say(f"  {what}")
        self._task = self._progress.add_task(f"  {what}", total=None, live="")

    def open_bar(self, name: str, total: int) -> None:
        """A bar for so many requests."""
        self.close_bar()
        self._task = self._progress.add_task(f"  {name}", total=total, live="")
        self._name, self._total, self._done = name, total, 0
        self._began_s = self._said_s = time.monotonic()
        self._first_s = self._began_s if self._first_s is None else self._first_s
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
        self._done += 1
        self._ended += 1
        if self._lines and (self._done == self._total or time.monotonic() - self._said_s >= SAID_S):
            self._said_s = time.monotonic()
            self.say(f"  {self.line(in_flight)}")
        assert self._task is not None, "no bar is open"
        self._progress.update(self._task, advance=1, live=_Live(self, in_flight))

    def line(self, in_flight: int | None = None) -> str:
        """The bar in words: what runs, how many of how many, how fast, how long yet."""
        seconds = max(time.monotonic() - self._began_s, 1e-9)
        parts = [f"{self._done:,} of {self._total:,} requests", f"{self._done / seconds:.1f} a second"]
        if self._done < self._total:
            parts.append(f"{_duration((self._total - self._done) * seconds / max(1, self._done))} left")
        elif self._done:
            parts.append(f"in {_duration(seconds)}")
        if self._all > self._ended and self._first_s is not None:
            whole_s = time.monotonic() - self._first_s
            left_s = (self._all - self._ended) * whole_s / max(1, self._ended)
            parts.append(f"all runs: {100 * self._ended / self._all:.0f} %, {_duration(left_s)} left")
        return f"{self._name}: " + ", ".join(filter(None, [*parts, self.live_text(in_flight)]))

    def close_bar(self) -> None:
        """Stop the current bar's clock."""
        if self._task is not None:
            task = self._progress.tasks[self._task]
            ended = task.completed or 1
            self._progress.update(self._task, total=ended, completed=ended, live=str(task.fields["live"]))
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


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


class _Live:
    """The line's text, made only when it is drawn."""

    def __init__(self, progress: ReplayProgress, in_flight: int | None) -> None:
        self._progress, self._in_flight = progress, in_flight

    def __str__(self) -> str:
        return self._progress.live_text(self._in_flight)

    def __format__(self, spec: str) -> str:
        return str(self)
