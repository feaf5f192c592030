"""`marconi explain`: why a request reused what it did, or what a prompt would reuse now."""

from pathlib import Path
from typing import Annotated, Any

import typer


def explain(
    url: Annotated[str, typer.Argument(help="The server, e.g. http://127.0.0.1:30000.")],
    request: Annotated[str | None, typer.Option(help="The id of one of the server's last requests.")] = None,
    prompt: Annotated[
        Path | None,
        typer.Option(metavar="FILE|-", help="A text, or JSON lines with input_ids, text or messages."),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE|-", help="Write it all as JSON.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="MARCONI_API_KEY", help="The server's (admin) API key, if it has one."),
    ] = None,
) -> None:
    """Why did this request miss? Where a prompt leaves the cache, the nearest state, why no nearer one, what it cost.

    Of a request the server tells what it found then, and what became of its own states; of a prompt, what it would
    find now. Asking changes nothing. No token ids, unless the server was started with --marconi-expose-tokens true.
    """
    from marconi_ext.errors import BadInputError, CheckFailedError
    from marconi_ext.output import check_writable, tables, write_json
    from marconi_ext.watch.explain_view import sentences
    from marconi_ext.watch.prompts import read_prompts
    from marconi_ext.watch.sealed_tokens import Key, unseal_excerpt
    from marconi_ext.watch.server import WatchedServer

    check_writable(json)
    if (request is None) == (prompt is None):
        raise BadInputError("explain: give either --request ID or --prompt FILE")
    server = WatchedServer(url, api_key)
    asked = [] if prompt is None else read_prompts(prompt)
    commands: dict[str, dict[str, Any]] = {
        one.name: {"do": "explain", "prompt": one.tokens(server), **one.namespace} for one in asked
    }
    if request is not None:
        commands[request] = {"do": "explain", "request": request}
    console, found = tables(json, 120), []
    for name, command in commands.items():
        key = Key.draw()
        answers = server.ask(command | {"key": [key.high, key.low]})
        told = [(rank, answer) for rank, answer in enumerate(answers) if "refused" not in answer]
        if not told:
            raise CheckFailedError(f"{name}: {answers[0]['refused']}")
        for rank, answer in told:
            if "tokens" in answer:
                answer["tokens"] = unseal_excerpt(answer["tokens"], key)
            found.append({"name": name, "rank": rank, **answer})
            rank_of = f" (rank {rank})" if len(answers) > 1 else ""
            console.print(f"[bold]{name}[/]{rank_of}", highlight=False)
            for line in sentences(answer):
                console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    if json is not None:
        write_json(json, {"explanations": found})
