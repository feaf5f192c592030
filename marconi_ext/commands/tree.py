"""`marconi tree`: the radix tree of a running server, for a bug report."""

from pathlib import Path
from typing import Annotated

import typer


def tree(
    url: Annotated[str, typer.Argument(help="The server, e.g. http://127.0.0.1:30000.")],
    json: Annotated[Path | None, typer.Option(metavar="FILE|-", help="Write the nodes as JSON.")] = None,
    tokens: Annotated[
        bool,
        typer.Option("--tokens", help="With token ids, which tell what was asked. Needs --json."),
    ] = False,
    depth: Annotated[int, typer.Option(min=1, help="Levels that the printed tree shows.")] = 4,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="MARCONI_API_KEY", help="The server's (admin) API key, if it has one."),
    ] = None,
) -> None:
    """Dump the prefix tree of a server with --enable-marconi: nodes, states, ages, locks; no token ids unless asked.

    It comes in pages, each of which holds the server for a few milliseconds.
    """
    from marconi_ext.errors import BadInputError
    from marconi_ext.output import check_writable, tables, write_json
    from marconi_ext.watch.server import WatchedServer
    from marconi_ext.watch.tree_view import draw_tree, summary

    check_writable(json)
    if tokens and json is None:
        raise BadInputError("--tokens: give --json FILE as well; token ids are not printed")
    server = WatchedServer(url, api_key)
    trees = server.tree(with_tokens=tokens)
    console = tables(json)
    for rank, dump in enumerate(trees):
        console.print(draw_tree(dump, f"rank {rank}: {summary(dump)}", depth), highlight=False)
    if json is not None:
        about = server.poll().ranks[0]
        write_json(json, {"version": about["version"], "config": about["config"], "ranks": trees})
