"""`marconi verify`: does the live engine do what the simulator says?"""

from pathlib import Path
from typing import Annotated

import typer


def verify(
    trace: Annotated[
        str, typer.Option(metavar="FILE|synthetic:NAME", help="The requests.")
    ] = "synthetic:agent",
    requests: Annotated[int, typer.Option(min=1, help="How many of them.")] = 200,
    policy: Annotated[
        str, typer.Option(help="As `marconi simulate` names them; exact admissions only.")
    ] = "gittins",
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
    from marconi_ext.commands.demo.traffic import trace_workload
    from marconi_ext.commands.server_setup import prepared, split_flags
    from marconi_ext.commands.verify.run import VerifyOptions, require_live_policy
    from marconi_ext.commands.verify.show import verify_and_print
    from marconi_ext.output import check_writable
    from marconi_ext.traces.source import SYNTHETIC
    from marconi_ext.traces.synthetic import scripts

    check_writable(json)
    check_writable(log, "--log")
    require_live_policy(policy)
    extra_flags = split_flags(server_flags)
    with prepared(model_path, cpu) as setup:
        if trace.startswith(SYNTHETIC):
            found = scripts(trace.removeprefix(SYNTHETIC), seed=seed, vocabulary=setup.facts.vocabulary)
        else:
            longest = max_prompt_tokens
            read = trace_workload(trace, setup.facts, requests, longest, format, tokenizer, False, seed)
            (found,) = read.values()
        options = VerifyOptions(
            model_path=setup.model,
            cpu=setup.cpu,
            scripts=found,
            requests=requests,
            policy=policy,
            slots=slots,
            tokens=tokens,
            extra_flags=extra_flags,
            log=log,
        )
        verify_and_print(options, seed, json)
