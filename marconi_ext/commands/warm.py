"""`marconi warm`: prefixes into a server's cache, each with the state at its exact end."""

from pathlib import Path
from typing import Annotated

import typer


def warm(
    prompts: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|-",
            help="A text, JSON lines with input_ids, text or messages, or a server's own memory.",
        ),
    ],
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:30000",
    pin: Annotated[bool, typer.Option("--pin", help="Pin each prefix as well, under its name.")] = False,
    json: Annotated[Path | None, typer.Option(metavar="FILE|-", help="Write what was done as JSON.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="MARCONI_API_KEY", help="The server's (admin) API key, if it has one."),
    ] = None,
) -> None:
    """Seed system prompts and tool preambles after a start or a weight update: one short request each.

    Each prefix is sent once, shallow ones first, so that deeper ones resume there. Of messages, all is sent that the
    chat template puts before what a user says next. A server with --marconi-remember FILE keeps its most valuable inner
    prefixes in that file, which this reads.
    """
    from rich.table import Table

    from marconi_ext.output import check_writable, tables, write_json
    from marconi_ext.watch.prompts import read_prompts
    from marconi_ext.watch.server import WatchedServer
    from marconi_ext.watch.warming import warm_prefixes

    check_writable(json)
    found = read_prompts(prompts)
    server = WatchedServer(url, api_key)
    done = warm_prefixes(server, found)
    if pin:
        for one in done:
            server.order(
                {"do": "pin", "name": one["name"], "prompt": one.pop("prompt"), **one.pop("namespace")}
            )
    table = Table(title=f"{url}: {len(done)} prefixes")
    for name in ("prefix", "tokens", "reused", "prefilled"):
        table.add_column(name, justify="left" if name == "prefix" else "right")
    for one in done:
        one.pop("prompt", None), one.pop("namespace", None)
        table.add_row(
            one["name"], *(f"{one[key]:,}" for key in ("tokens", "reused_tokens", "prefilled_tokens"))
        )
    tables(json).print(table)
    if json is not None:
        write_json(json, {"url": url, "pinned": pin, "prefixes": done})
