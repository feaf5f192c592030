"""Options that every command with a trace has: how the trace is read, and what is drawn where it doesn't say."""

from typing import Annotated, Any

import typer

READING = "How the trace is read"


def _option(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=READING, **settings)


Format = Annotated[str, _option(help="The trace's format; auto looks at its fields.")]
Tokenizer = Annotated[str, _option(help="For text: tekken, or a Hugging Face tokenizer folder.")]
Strict = Annotated[bool, _option("--strict", help="Refuse a trace with a broken line.")]
Limit = Annotated[int | None, _option(min=1, help="The first so many requests.")]
Seed = Annotated[int, _option(min=0, help="Of drawn arrivals and synthetic traffic.")]
SessionsPerS = Annotated[float, _option(help="Where the trace has no times: sessions a second.")]
ResponseS = Annotated[float, _option(help="Mean seconds between a session's requests, likewise.")]
