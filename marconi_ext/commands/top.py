"""`marconi top`: a running server, live in the terminal."""

from pathlib import Path
from typing import Annotated

import typer


def top(
    url: Annotated[str, typer.Argument(help="The server, e.g. http://127.0.0.1:30000.")],
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="Print totals since the server's start and end.")
    ] = False,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE|-", help="Add each look as one line of JSON.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="MARCONI_API_KEY", help="The server's API key, if it has one.")
    ] = None,
) -> None:
    """Hit rate, loss by cause, states, evictions and parameters of a server with --enable-marconi; Ctrl-C ends."""
    from rich.console import Console

    from marconi_ext.output import check_writable, to_stdout
    from marconi_ext.watch.loop import JsonLines, LineScreen, LiveScreen, Quiet, watch
    from marconi_ext.watch.server import WatchedServer

    check_writable(json)
    console = Console()
    server = WatchedServer(url, api_key)
    if to_stdout(json):
        screen = Quiet()
    elif console.is_terminal and not once:
        screen = LiveScreen(console)
    else:
        screen = LineScreen(console, whole=once)
    with screen, JsonLines(json) as lines:
        watch(server, screen, lines, interval_s=interval, once=once)
