"""`marconi replay`: send a trace to a running server, and show what its cache gave."""

from pathlib import Path
from typing import Annotated

import typer

from marconi_ext.commands import traffic_options as options
from marconi_ext.commands.traffic_options import TRAFFIC

TIMING = "When"
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
    history: Annotated[
        str, typer.Option(help="trace: prompts as recorded; own: with the server's own answers in them.")
    ] = "trace",
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Closed loop: so many in flight, times ignored.", rich_help_panel=TIMING),
    ] = None,
    speed: Annotated[
        float, typer.Option(help="The trace's times, so many times faster.", rich_help_panel=TIMING)
    ] = 1.0,
    max_rate: Annotated[
        float | None, typer.Option(help="Requests a second at most.", rich_help_panel=TIMING)
    ] = None,
    max_open: Annotated[
        int, typer.Option(min=1, help="In flight at most; more are held back.", rich_help_panel=TIMING)
    ] = DEFAULT_MAX_OPEN,
    sessions: options.Sessions = None,
    turns: options.Turns = None,
    limit: options.Limit = None,
    max_prompt_tokens: options.MaxPromptTokens = None,
    max_output_tokens: options.MaxOutputTokens = None,
    scale: options.Scale = None,
    vocabulary: Annotated[
        int | None,
        typer.Option(
            min=1_001, help="Fold token ids into so many; default: the model's.", rich_help_panel=TRAFFIC
        ),
    ] = None,
    format: options.Format = "auto",
    tokenizer: options.Tokenizer = "tekken",
    strict: options.Strict = False,
    free_length: Annotated[
        bool,
        typer.Option(
            "--free-length",
            help="OpenAI endpoints: let answers end by themselves (no ignore_eos).",
            rich_help_panel=TRAFFIC,
        ),
    ] = False,
    seed: options.Seed = 0,
    sessions_per_s: options.SessionsPerS = 1.0,
    response_s: options.ResponseS = 5.0,
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
    from marconi_ext.client import GenerateClient
    from marconi_ext.errors import BadInputError, CheckFailedError
    from marconi_ext.openai_client import ChatClient, CompletionsClient
    from marconi_ext.output import check_writable, tables, write_json
    from marconi_ext.player import play
    from marconi_ext.progress import ReplayProgress
    from marconi_ext.prompt_text import PromptText
    from marconi_ext.provenance import provenance
    from marconi_ext.replay import Pacing
    from marconi_ext.replay_view import WIDTH, print_summary
    from marconi_ext.results import ArmInfo, ResultsFolder, RunInfo, Timing, arm_folder
    from marconi_ext.run_folder import new_folder, now
    from marconi_ext.selection import Selection
    from marconi_ext.target import choose_endpoint, look_at
    from marconi_ext.target import flush as flush_cache
    from marconi_ext.traces.source import reporting
    from marconi_ext.traffic import Reading, load_traffic

    if history not in ("trace", "own"):
        raise BadInputError(f"--history {history}: choose trace or own")
    closed = concurrency is not None
    pacing = Pacing(
        concurrency=concurrency or max_open,
        timed=not closed,
        speed=speed,
        max_rate=max_rate,
        retries=retries,
        give_up_after=give_up_after or None,
    )
    check_writable(json)
    folder = ResultsFolder(new_folder(out, "replay"))
    target = look_at(url)
    chosen = choose_endpoint(endpoint, target)
    longest = max_prompt_tokens or options.context_left(target.context_tokens, max_output_tokens)
    selection = Selection(sessions, turns, scale, longest, limit, max_output_tokens)
    reading = Reading(format, tokenizer, strict, seed, sessions_per_s, response_s)
    with reporting() as progress:
        traffic = load_traffic(
            trace,
            selection,
            history=history,
            vocabulary=vocabulary or (target.vocabulary if chosen == "generate" else None),
            reading=reading,
            on_problem=progress.problem,
            on_request=progress.one,
        )
    if chosen == "generate":
        client = GenerateClient(target.url, timeout_s=timeout)
    else:
        kind = ChatClient if chosen == "chat" else CompletionsClient
        client = kind(
            target.url,
            model=model or target.model,
            text=PromptText(tokenizer),
            exact_length=not free_length,
            timeout_s=timeout,
        )
    if flush:
        flush_cache(target)
    arm = ArmInfo(
        name=label,
        folder=arm_folder(label),
        meaning=f"{target.url}, {chosen}",
        status_line="the extension is live (/server_info)" if target.extended else None,
        page_size=target.page_size,
    )
    info = RunInfo(
        created=now(),
        title=traffic.name,
        provenance=provenance(seed),
        model={"name": target.model, "server_version": target.version, "endpoint": chosen},
        trace=traffic.info,
        timing=Timing(
            loop="closed" if closed else "open",
            speed=None if closed else speed,
            max_rate=max_rate,
            concurrency=pacing.concurrency,
            history=history,
        ),
        arms=[arm],
        repeats=1,
        order=[(label, 0)],
    )
    folder.write_run(info)
    plan = traffic.plan()
    with ReplayProgress() as progress:
        progress.open_bar(traffic.name, len(plan.items))
        played = play(
            plan,
            client,
            pacing,
            folder.repeat(arm, 0),
            url=target.url,
            watch_s=watch,
            page_size=target.page_size,
            on_record=lambda record, live: progress.record(record, live.open_requests),
        )
    summary = played.summary
    folder.write_run(info.model_copy(update={"finished": not summary.error, "error": summary.error}))
    console = tables(json, WIDTH)
    print_summary(console, traffic.name, summary)
    console.print(f"results: {folder.path}", markup=False, highlight=False, soft_wrap=True)
    if json:
        write_json(
            json, {"run": folder.run().model_dump(mode="json"), "summary": summary.model_dump(mode="json")}
        )
    if summary.interrupted:
        raise typer.Exit(130)
    if summary.answered < summary.requests:
        lost = summary.requests - summary.answered
        raise CheckFailedError(
            f"{lost} of {summary.requests} requests weren't answered: {summary.error or 'see above'}"
        )
