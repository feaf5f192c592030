"""`marconi verify`: does the live engine do what the simulator says?"""

from pathlib import Path
from typing import Annotated

import typer

SHOWN = 20


def verify(
    trace: Annotated[
        str, typer.Option(metavar="FILE|synthetic:NAME", help="The requests.")
    ] = "synthetic:agent",
    requests: Annotated[int, typer.Option(min=1, help="How many of them.")] = 200,
    policy: Annotated[
        str, typer.Option(help="As `marconi simulate` names them; exact admissions only.")
    ] = "ours",
    slots: Annotated[int, typer.Option(min=8, help="The server's state pool.")] = 48,
    tokens: Annotated[int, typer.Option(min=64, help="The server's KV pool.")] = 100_000,
    max_prompt_tokens: Annotated[
        int, typer.Option(min=1, max=8_192, help="Longer prompts are left out.")
    ] = 4_096,
    model_path: Annotated[
        Path | None, typer.Option(help="A hybrid model's folder; default: a small seeded one.")
    ] = None,
    cpu: Annotated[bool | None, typer.Option("--cpu/--gpu", help="Where to run.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of traffic.")] = 0,
    format: Annotated[str, typer.Option(help="The trace's format.")] = "auto",
    tokenizer: Annotated[str, typer.Option(help="For traces of text: tekken or a folder.")] = "tekken",
    server_flags: Annotated[str, typer.Option(help="More SGLang flags, in one text.")] = "",
    log: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep the server's log there.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE|-", help="Write all requests as JSON.")] = None,
) -> None:
    """Send requests one at a time to a live server and through the simulator with the same pools.

    Exit code 0 only where each request reused the same tokens and both hold the same at the end.
    """
    import shlex
    import signal
    import sys
    import tempfile
    from dataclasses import asdict

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table

    from marconi_ext.demo_traffic import synthetic_workloads, trace_workload
    from marconi_ext.engine_options import ModelFacts, has_gpu
    from marconi_ext.errors import CheckFailedError
    from marconi_ext.output import check_writable, stderr_console, tables, write_json
    from marconi_ext.provenance import provenance
    from marconi_ext.toy_model import write_model
    from marconi_ext.traces.source import SYNTHETIC
    from marconi_ext.verify import VerifyOptions, require_live_policy
    from marconi_ext.verify import verify as run

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that the server is stopped too
    check_writable(json)
    require_live_policy(policy)
    with tempfile.TemporaryDirectory(prefix="marconi-model-") as folder:
        on_cpu = cpu if cpu is not None else not (model_path and has_gpu())
        model = model_path or write_model(Path(folder) / "toy-hybrid")
        facts = ModelFacts(model)
        if trace.startswith(SYNTHETIC):
            found = synthetic_workloads(trace.removeprefix(SYNTHETIC), facts, None, seed)
        else:
            found = trace_workload(trace, facts, requests, max_prompt_tokens, format, tokenizer, False, seed)
        (scripts,) = found.values()
        options = VerifyOptions(
            model_path=model,
            cpu=on_cpu,
            scripts=scripts,
            requests=requests,
            policy=policy,
            slots=slots,
            tokens=tokens,
            extra_flags=tuple(shlex.split(server_flags)),
            log=log,
        )
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=stderr_console()) as progress:
            total = min(requests, sum(len(script.turns) for script in scripts))
            task = progress.add_task("live", total=total)
            result = run(options, lambda served: progress.advance(task))
    if json:
        write_json(json, {**asdict(result), "agrees": result.agrees, "provenance": provenance(seed)})
    console = tables(json)
    prompt = sum(request.prompt_tokens for request in result.requests)
    hit = sum(request.live for request in result.requests)
    lost = sum(request.kv_tokens - request.simulated for request in result.requests)
    console.print(
        f"{len(result.requests)} requests, {policy}, {result.slots} slots, {result.tokens:,} KV tokens: "
        f"{100 * hit / prompt:.2f} % of {prompt:,} prompt tokens reused, "
        f"{100 * lost / prompt:.2f} % lost for want of a state",
        highlight=False,
    )
    if result.agrees:
        console.print("live and simulated agree on every request")
        return
    table = Table("request", "session", "turn", "prompt", "live", "simulated", title="Differences")
    for one in result.differing[:SHOWN]:
        cells = (one.number, one.session_id, one.turn, one.prompt_tokens, one.live, one.simulated)
        table.add_row(*map(str, cells))
    console.print(table)
    raise CheckFailedError(
        f"{len(result.differing)} of {len(result.requests)} requests differ; at the end live holds "
        f"{result.live_holds} states and KV tokens, simulated {result.simulated_holds}"
    )
