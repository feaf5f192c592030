"""`marconi trace`: describe a trace, or write it in the common format."""

from pathlib import Path
from typing import Annotated

import typer

from marconi_ext.commands import trace_options as reading

app = typer.Typer(no_args_is_help=True, help="Describe traces, and convert them to the common format.")

Source = Annotated[
    str,
    typer.Argument(metavar="FILE|FOLDER|synthetic:NAME", help="A trace in any known format, gzip or not."),
]
Template = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Write the messages as this chat template does: qwen3, qwen3.5, nemotron-3, kimi, glm, plain, …",
    ),
]


@app.command()
def info(
    trace: Source,
    format: reading.Format = "auto",
    tokenizer: reading.Tokenizer = "tekken",
    template: Template = None,
    strict: reading.Strict = False,
    limit: reading.Limit = None,
    seed: reading.Seed = 0,
    sessions_per_s: reading.SessionsPerS = 1.0,
    response_s: reading.ResponseS = 5.0,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE|-", help="Write the figures as JSON too.")
    ] = None,
) -> None:
    """Lengths, timing, sharing and ideal hit rate of a trace."""
    from marconi_ext.commands.trace.show import print_description
    from marconi_ext.output import check_writable, tables, write_json
    from marconi_ext.results.describe import describe
    from marconi_ext.traces.source import Reading, reporting

    check_writable(json)
    how = Reading(format, tokenizer, strict, seed, sessions_per_s, response_s)
    with reporting() as progress:
        stream = how.open(trace, template=template, limit=limit, on_problem=progress.problem)
        figures = {"trace": trace, **describe(progress.count(stream)), "broken_records": progress.problems}
    print_description(tables(json), figures)
    if json:
        write_json(json, figures)


@app.command()
def convert(
    trace: Source,
    out: Annotated[Path, typer.Argument(help="File to write; gzipped where it ends in .gz.")],
    format: reading.Format = "auto",
    tokenizer: reading.Tokenizer = "tekken",
    template: Template = None,
    strict: reading.Strict = False,
    limit: reading.Limit = None,
    seed: reading.Seed = 0,
    sessions_per_s: reading.SessionsPerS = 1.0,
    response_s: reading.ResponseS = 5.0,
) -> None:
    """Write a trace as one JSON line a request: session_id, turn_id, ts, input_tokens, output_tokens."""
    from marconi_ext.errors import BadInputError
    from marconi_ext.traces import marconi_jsonl
    from marconi_ext.traces.source import Reading, reporting

    if out.exists() and Path(trace).exists() and out.samefile(trace):
        raise BadInputError(f"OUT {out}: is the trace itself; name another file")
    how = Reading(format, tokenizer, strict, seed, sessions_per_s, response_s)
    with reporting() as progress:
        stream = how.open(trace, template=template, limit=limit, on_problem=progress.problem)
        try:
            written = marconi_jsonl.write(progress.count(stream), out)
        except OSError as error:
            raise BadInputError(f"OUT {out}: {error.strerror}") from None
    print(f"{written} requests written to {out}")
