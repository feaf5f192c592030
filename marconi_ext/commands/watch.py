"""`marconi watch`: what any SGLang or vLLM server tells of its prefix cache, without the extension."""

import time
from pathlib import Path
from typing import Annotated

import typer


def watch(
    url: Annotated[str, typer.Argument(help="The server, e.g. http://127.0.0.1:30000.")],
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 5.0,
    looks: Annotated[
        int | None, typer.Option(min=1, help="End after so many looks. Default: Ctrl-C.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE|-", help="Add each look as one line of JSON.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="MARCONI_API_KEY", help="The server's API key, if it has one.")
    ] = None,
) -> None:
    """Hit rate of a plain SGLang server (--enable-metrics) or of vLLM, from its own metrics; Ctrl-C ends.

    Their counters don't say what was lost for want of a recurrent state: `marconi replay` measures that on any server.
    """
    from contextlib import suppress

    from marconi_ext.output import check_writable, tables
    from marconi_ext.watch.loop import JsonLines
    from marconi_ext.watch.plain import PlainServer

    check_writable(json)
    server, console = PlainServer(url, api_key), tables(json)
    first = before = server.look()
    console.print(
        f"{server.url}: {first.engine}. What lacks a state isn't counted there: see `marconi replay`."
    )
    with suppress(KeyboardInterrupt), JsonLines(json) as lines:
        for number in range(looks or 10**9):
            if number:
                time.sleep(interval)
            now = server.look() if number else first
            lately = now.since(before) if number else now
            rate, all_time = lately.hit_rate, now.hit_rate
            console.print(
                f"hit {_percent(rate)} of {lately.prompt_tokens:,.0f} prompt tokens "
                f"{'since the start' if not number else f'in {interval:g} s'}, {_percent(all_time)} in all",
                highlight=False,
            )
            lines.add(
                {
                    "engine": now.engine,
                    "prompt_tokens": now.prompt_tokens,
                    "cached_tokens": now.cached_tokens,
                    "hit_rate": all_time,
                    "last_hit_rate": rate if number else None,
                }
            )
            before = now


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
