"""`marconi demo`: compare stock SGLang with the extension on live servers, in one command."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_WORKLOADS = "agent,few-shot,fork"
DEFAULT_ARMS = "stock,stock-track,marconi"
SERVER_GIB = 4  # memory of a server of the small model: three processes of SGLang


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
    format: Annotated[str, typer.Option(help="The trace's format.")] = "auto",
    tokenizer: Annotated[str, typer.Option(help="For traces of text: tekken or a folder.")] = "tekken",
    strict: Annotated[bool, typer.Option("--strict", help="Refuse a trace with a broken line.")] = False,
    server_flags: Annotated[str, typer.Option(help="More SGLang flags for every server, in one text.")] = "",
    start_timeout: Annotated[float, typer.Option(min=1, help="Seconds a server may take to start.")] = 300,
    request_timeout: Annotated[float, typer.Option(min=1, help="Seconds an answer may take.")] = 300,
    logs: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Keep the servers' logs there.")] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE|-", help="Write the figures as JSON too.")
    ] = None,
) -> None:
    """Replay the same traffic against stock SGLang and SGLang with the extension, and show the difference."""
    import shlex
    import signal
    import sys
    import tempfile

    from marconi_ext.arms import choose_arms
    from marconi_ext.attention_model import write_attention_model
    from marconi_ext.demo import DemoOptions, as_json, quick_flags, run_demo
    from marconi_ext.demo_traffic import synthetic_workloads, trace_workload
    from marconi_ext.demo_view import WIDTH, ProgressWatcher, print_tables
    from marconi_ext.engine_options import ModelFacts, available_memory_gib, has_gpu
    from marconi_ext.errors import BadInputError, CheckFailedError
    from marconi_ext.output import check_writable, tables, write_json
    from marconi_ext.provenance import provenance

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that servers are stopped too
    check_writable(json)
    if model_path and model_chunk:
        raise BadInputError("--model-chunk is for the small model; the model of --model-path has its own")
    with tempfile.TemporaryDirectory(prefix="marconi-model-") as folder:
        on_cpu = cpu if cpu is not None else not (model_path and has_gpu())
        model = model_path or write_small_model(Path(folder) / "toy-hybrid", model_chunk)
        facts = ModelFacts(model)
        if trace:
            limit = max_prompt_tokens or (4_096 if on_cpu else facts.context_tokens // 2)
            traffic = trace_workload(trace, facts, requests, limit, format, tokenizer, strict, seed)
        else:
            traffic = synthetic_workloads(workloads, facts, sessions, seed)
        chosen = choose_arms(arms, facts.chunk_tokens)
        attention_model = None
        if any(arm.attention_only for arm in chosen):
            attention_model = write_attention_model(Path(folder) / "toy-attention", facts.vocabulary)
        options = DemoOptions(
            model_path=model,
            cpu=on_cpu,
            arms=chosen,
            attention_model=attention_model,
            workloads=traffic,
            concurrency=concurrency,
            state_slots=state_slots,
            max_total_tokens=max_total_tokens,
            seed=seed,
            extra_flags=(*quick_flags(cpu=on_cpu), *shlex.split(server_flags)),
            start_timeout_s=start_timeout,
            request_timeout_s=request_timeout,
            logs=logs,
            side_by_side=on_cpu and model_path is None and available_memory_gib() > SERVER_GIB * len(chosen),
        )
        results, error = [], None
        try:
            with ProgressWatcher() as watcher:
                for result in run_demo(options, watcher):
                    results.append(result)
        except (CheckFailedError, KeyboardInterrupt) as reason:
            error = str(reason) or "interrupted"
            raise
        finally:  # what was measured before a failure or Ctrl-C is shown and written all the same
            if results:
                print_tables(tables(json, WIDTH), results)
            if json:
                write_json(json, as_json(results, provenance(seed), error))
    if any(result.incomplete() for result in results):
        raise CheckFailedError("some requests failed or were never sent: see the column `failed`")


def write_small_model(folder: Path, chunk_tokens: int | None) -> Path:
    """The bundled model. Raises BadInputError."""
    from marconi_ext.errors import BadInputError
    from marconi_ext.toy_model import ToyModel, write_model

    try:
        return write_model(folder, ToyModel(chunk_size=chunk_tokens) if chunk_tokens else ToyModel())
    except ValueError as error:
        raise BadInputError(f"--model-chunk {chunk_tokens}: {error}") from None
