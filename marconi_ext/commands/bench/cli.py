"""`marconi bench`: compare arms on the same traffic, server after server, repeat after repeat."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from marconi_ext.commands import trace_options as reading
from marconi_ext.commands import traffic_options as traffic

SERVERS = "Servers"
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
        bool | None,
        typer.Option(
            "--side-by-side/--one-by-one",
            help="All servers stay up and take turns, which is fairer on a shared machine, or one runs at a time. "
            "Default: side by side on the CPU platform where memory allows it.",
        ),
    ] = None,
    servers: Annotated[
        int,
        typer.Option(
            min=1, help="More than one: so many servers of the first arm, behind each of --router in turn."
        ),
    ] = 1,
    router: Annotated[
        str,
        typer.Option(
            help="With --servers: round-robin, sticky, resumable, sglang:POLICY (sglang-router: random, round_robin, "
            "cache_aware, power_of_two, manual)."
        ),
    ] = "round-robin,sticky,resumable",
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
    concurrency: Annotated[
        int, typer.Option(min=1, help="Requests in flight.", rich_help_panel=traffic.TIMING)
    ] = 4,
    speed: Annotated[
        float | None,
        typer.Option(
            help="Keep the trace's times, so many times faster; default: send as soon as there is room.",
            rich_help_panel=traffic.TIMING,
        ),
    ] = None,
    max_rate: traffic.MaxRate = None,
    sessions: traffic.Sessions = None,
    turns: traffic.Turns = None,
    limit: reading.Limit = None,
    max_prompt_tokens: traffic.MaxPromptTokens = None,
    max_output_tokens: traffic.MaxOutputTokens = None,
    scale: traffic.Scale = None,
    format: reading.Format = "auto",
    tokenizer: reading.Tokenizer = "tekken",
    strict: reading.Strict = False,
    seed: reading.Seed = 0,
    sessions_per_s: reading.SessionsPerS = 1.0,
    response_s: reading.ResponseS = 5.0,
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
    from marconi_ext.commands.bench.routed import run_routed
    from marconi_ext.commands.bench.routed_show import show
    from marconi_ext.commands.bench.routers import check_routers
    from marconi_ext.commands.bench.run import BenchOptions
    from marconi_ext.commands.bench.show import bench_and_print
    from marconi_ext.commands.server_setup import prepared, require_engine, small_model, split_flags
    from marconi_ext.output import check_writable
    from marconi_ext.replay.selection import Selection
    from marconi_ext.replay.sender import Pacing
    from marconi_ext.replay.traffic import check_history, load_traffics
    from marconi_ext.results.run_folder import free_folder
    from marconi_ext.servers.arm_server import ServerOptions
    from marconi_ext.traces.source import Reading

    sent = check_history(history)
    check_writable(json)
    routers = check_routers(router)
    pacing = Pacing(concurrency, speed is not None, 1.0 if speed is None else speed, max_rate)
    selection = Selection(sessions, turns, scale, max_prompt_tokens, limit, max_output_tokens)
    reading = Reading(format, tokenizer, strict, seed, sessions_per_s, response_s)
    require_engine()
    extra_flags = split_flags(server_flags)
    toy = small_model("mamba2", "--hidden, --pattern", hidden=hidden, pattern=pattern)
    with prepared(model_path, cpu, toy) as setup:
        chosen, attention_model = setup.arms(arms)
        fitting, vocabulary = selection.within(setup.facts.context_tokens), setup.facts.vocabulary
        if servers > 1:
            seeds = [replace(reading, seed=seed + run) for run in range(repeat)]
            several = [
                load_traffics(trace, fitting, history=sent, vocabulary=vocabulary, reading=one)
                for one in seeds
            ]
            common = ServerOptions(
                model_path=setup.model,
                cpu=setup.cpu,
                state_slots=state_slots,
                max_total_tokens=max_total_tokens,
                seed=seed,
                extra_flags=extra_flags,
                start_timeout_s=start_timeout,
            )
            logs = free_folder(out, "bench")
            rows = run_routed(common, chosen[0], servers, routers, several, concurrency, logs)
            show(rows, servers, json)
            return
        traffics = load_traffics(trace, fitting, history=sent, vocabulary=vocabulary, reading=reading)
        options = BenchOptions(
            model_path=setup.model,
            cpu=setup.cpu,
            attention_model=attention_model,
            state_slots=state_slots,
            max_total_tokens=max_total_tokens,
            seed=seed,
            extra_flags=extra_flags,
            start_timeout_s=start_timeout,
            request_timeout_s=request_timeout,
            arms=chosen,
            traffics=traffics,
            pacing=pacing,
            folder=free_folder(out, "bench"),
            history=sent,
            repeats=repeat,
            side_by_side=setup.room_for(len(chosen)) if side_by_side is None else side_by_side,
            watch_s=watch,
        )
        bench_and_print(options, json)
