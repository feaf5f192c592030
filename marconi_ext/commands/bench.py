"""`marconi bench`: compare arms on the same traffic, server after server, repeat after repeat."""

from pathlib import Path
from typing import Annotated

import typer

from marconi_ext.commands import traffic_options as options

SERVERS = "Servers"
TIMING = "When"
RESULTS = "Results"


def bench(
    trace: Annotated[
        list[str],
        typer.Option(metavar="FILE|FOLDER|synthetic:NAME", help="What to replay; may be given again."),
    ],
    arms: Annotated[
        str,
        typer.Option(
            help="NAME[:OPTION=VALUE…], comma-separated; the first is the baseline. Names: off, stock, "
            "stock-track, marconi, pure-attention. Options: slots, tokens, page, max-states, track-interval, "
            "the extension's settings (eviction, checkpoints, …), flag.NAME for any other flag."
        ),
    ] = "stock,marconi",
    repeat: Annotated[int, typer.Option(min=1, help="Runs of every arm, in alternating order.")] = 3,
    side_by_side: Annotated[
        bool,
        typer.Option(
            "--side-by-side",
            help="All servers stay up and take turns: fairer on a shared machine, and more memory.",
        ),
    ] = False,
    history: Annotated[
        str, typer.Option(help="own: with the server's own answers in prompts; trace: prompts as recorded.")
    ] = "own",
    model_path: Annotated[
        Path | None,
        typer.Option(help="A hybrid model's folder; default: a small seeded one.", rich_help_panel=SERVERS),
    ] = None,
    hidden: Annotated[
        int, typer.Option(min=16, help="Width of the small model.", rich_help_panel=SERVERS)
    ] = 64,
    pattern: Annotated[
        str, typer.Option(help="Its layers: M Mamba2, * attention, - MLP.", rich_help_panel=SERVERS)
    ] = "M*M-",
    cpu: Annotated[
        bool | None,
        typer.Option(
            "--cpu/--gpu", help="Default: --gpu if there is one and --model-path.", rich_help_panel=SERVERS
        ),
    ] = None,
    state_slots: Annotated[
        int | None, typer.Option(min=8, help="Size of the state pools.", rich_help_panel=SERVERS)
    ] = None,
    max_total_tokens: Annotated[
        int | None, typer.Option(min=1, help="Size of the KV pools.", rich_help_panel=SERVERS)
    ] = None,
    server_flags: Annotated[
        str, typer.Option(help="More SGLang flags for every server, in one text.", rich_help_panel=SERVERS)
    ] = "",
    start_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds a server may take to start.", rich_help_panel=SERVERS)
    ] = 300,
    request_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds an answer may take.", rich_help_panel=SERVERS)
    ] = 300,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.", rich_help_panel=TIMING)] = 4,
    speed: Annotated[
        float | None,
        typer.Option(
            help="Keep the trace's times, so many times faster; default: send as soon as there is room.",
            rich_help_panel=TIMING,
        ),
    ] = None,
    max_rate: Annotated[
        float | None, typer.Option(help="Requests a second at most.", rich_help_panel=TIMING)
    ] = None,
    sessions: options.Sessions = None,
    turns: options.Turns = None,
    limit: options.Limit = None,
    max_prompt_tokens: options.MaxPromptTokens = None,
    max_output_tokens: options.MaxOutputTokens = None,
    scale: options.Scale = None,
    format: options.Format = "auto",
    tokenizer: options.Tokenizer = "tekken",
    strict: options.Strict = False,
    seed: options.Seed = 0,
    sessions_per_s: options.SessionsPerS = 1.0,
    response_s: options.ResponseS = 5.0,
    watch: Annotated[
        float, typer.Option(min=0, help="Seconds between looks at the server.", rich_help_panel=RESULTS)
    ] = 1.0,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Default: a new one here.", rich_help_panel=RESULTS)
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE|-", help="The comparison as JSON too.", rich_help_panel=RESULTS),
    ] = None,
) -> None:
    """Compare servers on the same traffic: hit rate, loss, TTFT, throughput, with intervals."""
    import shlex
    import signal
    import sys
    import tempfile

    from marconi_ext.arms import choose_arms
    from marconi_ext.attention_model import write_attention_model
    from marconi_ext.bench_driver import BenchOptions
    from marconi_ext.bench_report import bench_and_print
    from marconi_ext.engine_options import ModelFacts, has_gpu
    from marconi_ext.errors import BadInputError
    from marconi_ext.output import check_writable
    from marconi_ext.replay import Pacing
    from marconi_ext.run_folder import new_folder
    from marconi_ext.selection import Selection
    from marconi_ext.toy_model import ToyModel, write_model
    from marconi_ext.traces.source import reporting
    from marconi_ext.traffic import Reading, load_traffic

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that servers are stopped too
    if history not in ("trace", "own"):
        raise BadInputError(f"--history {history}: choose trace or own")
    pacing = Pacing(
        concurrency=concurrency,
        timed=speed is not None,
        speed=1.0 if speed is None else speed,
        max_rate=max_rate,
    )
    check_writable(json)
    with tempfile.TemporaryDirectory(prefix="marconi-model-") as scratch:
        on_cpu = cpu if cpu is not None else not (model_path and has_gpu())
        try:
            toy = ToyModel(hidden=hidden, pattern=pattern)
        except ValueError as error:
            raise BadInputError(f"--hidden, --pattern: {error}") from None
        model = model_path or write_model(Path(scratch) / "toy-hybrid", toy)
        facts = ModelFacts(model)
        chosen = choose_arms(arms, facts.chunk_tokens)
        attention_model = None
        if any(arm.attention_only for arm in chosen):
            attention_model = write_attention_model(Path(scratch) / "toy-attention", facts.vocabulary)
        longest = max_prompt_tokens or options.context_left(facts.context_tokens, max_output_tokens)
        selection = Selection(sessions, turns, scale, longest, limit, max_output_tokens)
        reading = Reading(format, tokenizer, strict, seed, sessions_per_s, response_s)
        with reporting() as progress:
            traffics = [
                load_traffic(
                    one,
                    selection,
                    history=history,
                    vocabulary=facts.vocabulary,
                    reading=reading,
                    on_problem=progress.problem,
                    on_request=progress.one,
                )
                for one in trace
            ]
        if len({traffic.name for traffic in traffics}) < len(traffics):
            raise BadInputError("--trace: two of them have the same name; run them one at a time")
        bench_and_print(
            BenchOptions(
                model_path=model,
                cpu=on_cpu,
                attention_model=attention_model,
                state_slots=state_slots,
                max_total_tokens=max_total_tokens,
                seed=seed,
                extra_flags=tuple(shlex.split(server_flags)),
                start_timeout_s=start_timeout,
                request_timeout_s=request_timeout,
                arms=chosen,
                traffics=traffics,
                pacing=pacing,
                folder=new_folder(out, "bench"),
                history=history,
                repeats=repeat,
                side_by_side=side_by_side,
                watch_s=watch,
            ),
            json,
        )
