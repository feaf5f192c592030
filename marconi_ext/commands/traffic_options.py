"""Options that `marconi replay` and `marconi bench` share: what is sent, how it is cut to size, and when."""

from typing import Annotated, Any

import typer

TRAFFIC, TIMING = "What to send", "When"


def _option(help: str, **settings: Any) -> Any:
    return typer.Option(help=help, rich_help_panel=TRAFFIC, **settings)


Sessions = Annotated[int | None, _option("The first so many sessions.", min=1)]
Turns = Annotated[int | None, _option("Of each session the first turns.", min=1)]
Limit = Annotated[int | None, _option("The first so many requests.", min=1)]
MaxPromptTokens = Annotated[
    int | None, _option("End a session before a longer prompt; default: what the context leaves.", min=1)
]
MaxOutputTokens = Annotated[int | None, _option("Ask for no longer answers.", min=1)]
Scale = Annotated[float | None, _option("Keep this share of all tokens, sharing included.")]
Format = Annotated[str, _option("The trace's format.")]
Tokenizer = Annotated[str, _option("For text: tekken or a folder.")]
Strict = Annotated[bool, _option("Refuse a trace with a broken line.")]
Seed = Annotated[int, _option("Of drawn arrivals and synthetic traffic.", min=0)]
SessionsPerS = Annotated[float, _option("Where the trace has no times: sessions a second.")]
ResponseS = Annotated[float, _option("Mean seconds between turns, likewise.")]
MaxRate = Annotated[float | None, typer.Option(help="Requests a second at most.", rich_help_panel=TIMING)]
