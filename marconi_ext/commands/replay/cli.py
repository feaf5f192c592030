"""`marconi replay`: send a trace to a running server, and show what its cache gave."""

from pathlib import Path
from typing import Annotated

import typer

from marconi_ext.commands import trace_options as reading
from marconi_ext.commands import traffic_options as traffic
from marconi_ext.commands.traffic_options import TRAFFIC

FAILURES = "Failures"
RESULTS = "Results"
DEFAULT_MAX_OPEN = 4_096


def replay(
    url: Annotated[str, typer.Option(help="The server: http://HOST:PORT.")],
    trace: Annotated[str, typer.Option(metavar="FILE|FOLDER|synthetic:NAME", help="What to replay.")],
    endpoint: Annotated[
        str, typer.Option(help="generate (SGLang, token ids), completions or chat (OpenAI, text), auto.")
    ] = "auto",
    model: Annotated[str | None, typer.Option(help="Model name for OpenAI endpoints; default: ask.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="MARCONI_API_KEY", help="The server's API key, if it has one.")
    ] = None,
    history: Annotated[
        str, typer.Option(help="trace: prompts as recorded; own: with the server's own answers in them.")
    ] = "trace",
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1, help="Closed loop: so many in flight, times ignored.", rich_help_panel=traffic.TIMING
        ),
    ] = None,
    speed: Annotated[
        float, typer.Option(help="The trace's times, so many times faster.", rich_help_panel=traffic.TIMING)
    ] = 1.0,
    max_rate: traffic.MaxRate = None,
    max_open: Annotated[
        int,
        typer.Option(min=1, help="In flight at most; more are held back.", rich_help_panel=traffic.TIMING),
    ] = DEFAULT_MAX_OPEN,
    sessions: traffic.Sessions = None,
    turns: traffic.Turns = None,
    limit: reading.Limit = None,
    max_prompt_tokens: traffic.MaxPromptTokens = None,
    max_output_tokens: traffic.MaxOutputTokens = None,
    scale: traffic.Scale = None,
    vocabulary: Annotated[
        int | None,
        typer.Option(
            min=1_001, help="Fold token ids into so many; default: the model's.", rich_help_panel=TRAFFIC
        ),
    ] = None,
    format: reading.Format = "auto",
    tokenizer: reading.Tokenizer = "tekken",
    strict: reading.Strict = False,
    free_length: Annotated[
        bool,
        typer.Option(
            "--free-length",
            help="OpenAI endpoints: let answers end by themselves (no ignore_eos).",
            rich_help_panel=TRAFFIC,
        ),
    ] = False,
    seed: reading.Seed = 0,
    sessions_per_s: reading.SessionsPerS = 1.0,
    response_s: reading.ResponseS = 5.0,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds for a whole answer.", rich_help_panel=FAILURES)
    ] = 300.0,
    retries: Annotated[
        int,
        typer.Option(min=0, help="More attempts for what the server didn't take.", rich_help_panel=FAILURES),
    ] = 2,
    give_up_after: Annotated[
        int,
        typer.Option(min=0, help="Failures in a row that end the run; 0: never.", rich_help_panel=FAILURES),
    ] = 20,
    flush: Annotated[bool, typer.Option("--flush", help="Empty the server's cache first (SGLang).")] = False,
    watch: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds between looks at /server_info and /metrics.", rich_help_panel=RESULTS
        ),
    ] = 1.0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Default: a new one here.", rich_help_panel=RESULTS),
    ] = None,
    label: Annotated[
        str, typer.Option(help="The server's name in tables and reports.", rich_help_panel=RESULTS)
    ] = "server",
    json: Annotated[
        Path | None, typer.Option(metavar="FILE|-", help="The summary as JSON too.", rich_help_panel=RESULTS)
    ] = None,
) -> None:
    """Replay a trace against a running server: hit rate, what it lost against the ideal, TTFT, failures."""
    from marconi_ext.commands.replay.run import ReplayOptions, replay_and_print
    from marconi_ext.errors import CheckFailedError
    from marconi_ext.output import check_writable
    from marconi_ext.replay.selection import Selection
    from marconi_ext.replay.sender import Pacing
    from marconi_ext.replay.target import check_endpoint
    from marconi_ext.replay.traffic import check_history
    from marconi_ext.results.run_folder import free_folder
    from marconi_ext.traces.source import Reading, check_source

    sent = check_history(history)
    check_endpoint(endpoint)
    check_source(trace, sessions_per_s, response_s)
    check_writable(json)
    closed = concurrency is not None
    pacing = Pacing(
        concurrency=concurrency or max_open,
        timed=not closed,
        speed=speed,
        max_rate=max_rate,
        retries=retries,
        give_up_after=give_up_after or None,
    )
    options = ReplayOptions(
        url=url,
        source=trace,
        endpoint=endpoint,
        model=model,
        api_key=api_key,
        history=sent,
        pacing=pacing,
        selection=Selection(sessions, turns, scale, max_prompt_tokens, limit, max_output_tokens),
        reading=Reading(format, tokenizer, strict, seed, sessions_per_s, response_s),
        vocabulary=vocabulary,
        exact_length=not free_length,
        timeout_s=timeout,
        flush=flush,
        watch_s=watch,
        folder=free_folder(out, "replay"),
        label=label,
    )
    summary = replay_and_print(options, json)
    if summary.interrupted:
        raise typer.Exit(130)
    if summary.answered < summary.requests:
        lost = summary.requests - summary.answered
        raise CheckFailedError(
            f"{lost} of {summary.requests} requests weren't answered: {summary.error or 'see above'}"
        )
