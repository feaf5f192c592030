"""Polls a server until told to stop, and hands each poll to a screen and to a file of JSON lines."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from marconi_ext.errors import BadInputError
from marconi_ext.output import to_stdout
from marconi_ext.watch import view
from marconi_ext.watch.rates import activity, as_json, restarted
from marconi_ext.watch.server import Poll, UnreachableError, WatchedServer

if TYPE_CHECKING:
    from rich.console import RenderableType

WINDOW_S = 10.0  # rates are over this long, so that a quiet second doesn't blank the view


class Screen(Protocol):
    """Where polls are shown; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def show(self, url: str, poll: Poll, before: Poll | None, history: deque[float | None]) -> None: ...

    def lost(self, url: str, error: UnreachableError) -> None: ...


class Quiet:
    """Shows nothing: the JSON lines are the output."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def show(self, url: str, poll: Poll, before: Poll | None, history: deque[float | None]) -> None:
        pass

    def lost(self, url: str, error: UnreachableError) -> None:
        print(f"marconi: {error}", file=sys.stderr)


class LineScreen(Quiet):
    """A line a poll for pipes and files; whole: the full view, once."""

    def __init__(self, console: Console, *, whole: bool) -> None:
        self._console, self._whole = console, whole

    def show(self, url: str, poll: Poll, before: Poll | None, history: deque[float | None]) -> None:
        if self._whole:
            self._console.print(view.draw(url, poll, before, ()))
        else:
            print(view.line(poll, before), flush=True)


class LiveScreen(Quiet):
    """The view, drawn again in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, screen=console.is_terminal)
        self._last: RenderableType = Text("")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def show(self, url: str, poll: Poll, before: Poll | None, history: deque[float | None]) -> None:
        self._last = view.fitting(self._console, url, poll, before, history)
        self._live.update(self._last, refresh=True)

    def lost(self, url: str, error: UnreachableError) -> None:
        from rich.console import Group

        self._live.update(Group(Text(str(error), style="bold red"), self._last), refresh=True)


class JsonLines:
    """A file of one JSON object a poll; None: no file, -: stdout. A context manager."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stream: TextIO | None = None

    def __enter__(self) -> Self:
        if self._path is not None:
            try:
                self._stream = sys.stdout if to_stdout(self._path) else self._path.open("a", encoding="utf-8")
            except OSError as error:
                raise BadInputError(f"--json {self._path}: {error.strerror}") from None
        return self

    def __exit__(self, *exc: object) -> None:
        if self._stream is not None and self._stream is not sys.stdout:
            self._stream.close()

    def add(self, value: object) -> None:
        if self._stream is not None:
            self._stream.write(json.dumps(value, allow_nan=False) + "\n")
            self._stream.flush()


def watch(
    server: WatchedServer, screen: Screen, lines: JsonLines, *, interval_s: float, once: bool = False
) -> None:
    """Until Ctrl-C, or once. Raises at the first poll only; a server lost later is shown and waited for."""
    polls: deque[Poll] = deque([server.poll()])
    history: deque[float | None] = deque(maxlen=view.SPARK_CELLS)
    try:
        while True:
            latest = polls[-1]
            while len(polls) > 2 and latest.at_s - polls[1].at_s >= WINDOW_S:
                polls.popleft()
            before = polls[0] if len(polls) > 1 else None
            if before is not None:
                history.append(activity(latest, polls[-2]).hit_percent)
            lines.add(as_json(latest, before))
            screen.show(server.url, latest, before, history)
            if once:
                return
            polls.append(_next(server, screen, interval_s))
            if restarted(polls[-1], latest):
                polls = deque([polls[-1]])
                history.clear()
    except KeyboardInterrupt:
        return  # the usual way to end


def _next(server: WatchedServer, screen: Screen, interval_s: float) -> Poll:
    """The next answer, however long the server is away."""
    while True:
        time.sleep(interval_s)
        try:
            return server.poll()
        except UnreachableError as error:
            screen.lost(server.url, error)
