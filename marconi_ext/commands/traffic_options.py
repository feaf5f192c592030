"""Options that `marconi replay` and `marconi bench` share: what is sent, how it is cut to size, and when.

How the trace is read is in `trace_options`.
"""

from typing import Annotated, Any

import typer

TRAFFIC, TIMING = "What to send", "When"


def _option(help: str, **settings: Any) -> Any:
    return typer.Option(help=help, rich_help_panel=TRAFFIC, **settings)


Sessions = Annotated[int | None, _option("The first so many sessions.", min=1)]
Turns = Annotated[int | None, _option("Of each session the first turns.", min=1)]
MaxPromptTokens = Annotated[
    int | None, _option("End a session before a longer prompt; default: what the context leaves.", min=1)
]
MaxOutputTokens = Annotated[int | None, _option("Ask for no longer answers.", min=1)]
Scale = Annotated[float | None, _option("Keep this share of all tokens, sharing included.")]
MaxRate = Annotated[float | None, typer.Option(help="Requests a second at most.", rich_help_panel=TIMING)]
