"""`marconi pin`: prefixes that stay in a server's cache, within a budget, until they expire."""

from pathlib import Path
from typing import Annotated

import typer


def pin(
    url: Annotated[str, typer.Argument(help="The server, e.g. http://127.0.0.1:30000.")],
    prompts: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE|-]", help="Prefixes as `marconi warm` takes them. None: list what is pinned."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The pin's name, for a file with one prefix.")] = None,
    expire: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="End the pins after so long.")
    ] = None,
    remove: Annotated[str | None, typer.Option(metavar="NAME|all", help="End a pin, or all.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE|-", help="Write what is pinned as JSON.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="MARCONI_API_KEY", help="The server's (admin) API key, if it has one."),
    ] = None,
) -> None:
    """Keep system prompts and tool preambles in the cache: pinned states and their KV are evicted after all else.

    A prefix that isn't in the cache is sent first. Pins may hold --marconi-pin-share of the slots and of the KV (10 %);
    one that doesn't fit is refused. A flush ends all pins. `marconi top` and the metrics show them.
    """
    from rich.table import Table

    from marconi_ext.errors import BadInputError
    from marconi_ext.output import check_writable, tables, write_json
    from marconi_ext.watch.prompts import read_prompts
    from marconi_ext.watch.server import WatchedServer
    from marconi_ext.watch.warming import warm_prefixes

    check_writable(json)
    if remove is not None and prompts is not None:
        raise BadInputError("--remove: ends pins, so give no file with it")
    if expire is not None and not 0 < expire < 1e9:
        raise BadInputError(f"--expire {expire:g}: want seconds above 0")
    server = WatchedServer(url, api_key)
    ranks = server.order({"do": "pins"}) if prompts is None and remove is None else []
    if remove is not None:
        ranks = server.order(
            {"do": "unpin", "all": True} if remove == "all" else {"do": "unpin", "name": remove}
        )
    elif prompts is not None:
        found = read_prompts(prompts)
        if name is not None and len(found) > 1:
            raise BadInputError(
                f"--name: {prompts} holds {len(found)} prefixes; give each its own `name` there"
            )
        for one in warm_prefixes(server, found):
            named = {"name": name or one["name"], "prompt": one["prompt"], "seconds": expire}
            ranks = server.order({"do": "pin", **named, **one["namespace"]})
    budget = ranks[0]["budget"]
    table = Table(title=f"{url}: {ranks[0]['states']} of {budget['states']:,} states that may be pinned")
    for column in ("pin", "tokens", "seconds left"):
        table.add_column(column, justify="left" if column == "pin" else "right")
    for held in (pin for rank in ranks for pin in rank["pins"]):
        left = held["seconds_left"]
        table.add_row(held["name"], f"{held['depth_tokens']:,}", "–" if left is None else f"{left:,.0f}")
    tables(json).print(table)
    if json is not None:
        write_json(json, {"url": url, "ranks": ranks})
