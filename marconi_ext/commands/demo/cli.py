"""`marconi demo`: compare stock SGLang with the extension on live servers, in one command."""

from pathlib import Path
from typing import Annotated

import typer

from marconi_ext.commands import trace_options as reading

DEFAULT_WORKLOADS = "agent,few-shot,fork,thinking,samples"
DEFAULT_ARMS = "stock,stock-track,marconi"


def demo(
    workloads: Annotated[
        str, typer.Option(help="Synthetic traffic, comma-separated; any name of `marconi trace`.")
    ] = DEFAULT_WORKLOADS,
    trace: Annotated[
        str | None, typer.Option(metavar="FILE|FOLDER", help="Replay a trace instead of synthetic traffic.")
    ] = None,
    arms: Annotated[str, typer.Option(help="Servers to compare, comma-separated.")] = DEFAULT_ARMS,
    model_path: Annotated[
        Path | None, typer.Option(help="A hybrid model's folder; default: a small seeded one.")
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            help="The small model's family: mamba2 (default), gdn, kda, lightning, lfm2, lfm2-moe, zaya."
        ),
    ] = None,
    model_chunk: Annotated[
        int | None, typer.Option(help="Chunk of the small model's scan in tokens; default 64.")
    ] = None,
    cpu: Annotated[
        bool | None,
        typer.Option("--cpu/--gpu", help="Where to run; default: --gpu if there is one and --model-path."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight at once.")] = 1,
    state_slots: Annotated[int | None, typer.Option(min=8, help="Size of the server's state pool.")] = None,
    max_total_tokens: Annotated[int | None, typer.Option(min=1, help="Size of its KV pool.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of traffic and sampling.")] = 0,
    requests: Annotated[int, typer.Option(min=1, help="With --trace: how many to replay.")] = 200,
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="With --trace: skip longer prompts; default 4096 or the context."),
    ] = None,
    sessions: Annotated[
        int | None, typer.Option(min=1, help="Synthetic sessions; default: each workload's own number.")
    ] = None,
    format: reading.Format = "auto",
    tokenizer: reading.Tokenizer = "tekken",
    strict: reading.Strict = False,
    server_flags: Annotated[str, typer.Option(help="More SGLang flags for every server, in one text.")] = "",
    start_timeout: Annotated[float, typer.Option(min=1, help="Seconds a server may take to start.")] = 300,
    request_timeout: Annotated[float, typer.Option(min=1, help="Seconds an answer may take.")] = 300,
    logs: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Keep the servers' logs there.")] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE|-", help="Write the figures as JSON too.")
    ] = None,
) -> None:
    """Replay the same traffic against stock SGLang and SGLang with the extension, and show the difference."""
    from marconi_ext.commands.demo.run import DemoOptions, quick_flags
    from marconi_ext.commands.demo.show import demo_and_print
    from marconi_ext.commands.demo.traffic import synthetic_workloads, trace_workload
    from marconi_ext.commands.server_setup import prepared, require_engine, small_model, split_flags
    from marconi_ext.errors import BadInputError
    from marconi_ext.output import check_writable

    check_writable(json)
    require_engine()
    extra_flags = split_flags(server_flags)
    if model_path and model_chunk:
        raise BadInputError("--model-chunk is for the small model; the model of --model-path has its own")
    if model_path and family:
        raise BadInputError("--family is for the small model; the model of --model-path has its own")
    sizes = {"chunk_size": model_chunk} if model_chunk else {}
    small = small_model(family or "mamba2", f"--model-chunk {model_chunk}", **sizes)
    with prepared(model_path, cpu, small) as setup:
        if trace:
            longest = max_prompt_tokens or (4_096 if setup.cpu else setup.facts.context_tokens // 2)
            traffic = trace_workload(trace, setup.facts, requests, longest, format, tokenizer, strict, seed)
        else:
            traffic = synthetic_workloads(workloads, setup.facts, sessions, seed)
        chosen, attention_model = setup.arms(arms)
        options = DemoOptions(
            model_path=setup.model,
            cpu=setup.cpu,
            arms=chosen,
            attention_model=attention_model,
            workloads=traffic,
            concurrency=concurrency,
            state_slots=state_slots,
            max_total_tokens=max_total_tokens,
            seed=seed,
            extra_flags=(*quick_flags(cpu=setup.cpu), *extra_flags),
            start_timeout_s=start_timeout,
            request_timeout_s=request_timeout,
            logs=logs,
            side_by_side=model_path is None and setup.room_for(len(chosen)),
        )
        demo_and_print(options, json)
