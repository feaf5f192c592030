"""Runs a verification and says what came of it: a table of differences, JSON, exit code."""

from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from marconi_ext.commands.verify.run import Verification, VerifyOptions, verify
from marconi_ext.errors import CheckFailedError
from marconi_ext.output import print_table, stderr_console, tables, write_json
from marconi_ext.results.provenance import provenance

SHOWN = 20


def verify_and_print(options: VerifyOptions, seed: int, json: Path | None = None) -> None:
    """Raises CheckFailedError where live and simulated differ, and what verify raises."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=stderr_console()) as progress:
        total = min(options.requests, sum(len(script.turns) for script in options.scripts))
        task = progress.add_task("live", total=total)
        found = verify(options, lambda served: progress.advance(task))
    if json:
        write_json(json, {**asdict(found), "agrees": found.agrees, "provenance": provenance(seed)})
    print_verification(tables(json), found)
    if not found.agrees:
        raise CheckFailedError(
            f"{len(found.differing)} of {len(found.requests)} requests differ; at the end live holds "
            f"{found.live_holds} states and KV tokens, simulated {found.simulated_holds}"
        )


def print_verification(console: Console, found: Verification) -> None:
    """What was reused, and the first differences if there are any."""
    prompt = sum(request.prompt_tokens for request in found.requests)
    hit = sum(request.live for request in found.requests)
    lost = sum(request.kv_tokens - request.simulated for request in found.requests)
    console.print(
        f"{len(found.requests)} requests, {found.policy}, {found.slots} slots, {found.tokens:,} KV tokens: "
        f"{100 * hit / prompt:.2f} % of {prompt:,} prompt tokens reused, "
        f"{100 * lost / prompt:.2f} % lost for want of a state",
        highlight=False,
    )
    if found.agrees:
        console.print("live and simulated agree on every request")
        return
    table = Table("request", "session", "turn", "prompt", "live", "simulated", title="Differences")
    for one in found.differing[:SHOWN]:
        cells = (one.number, one.session_id, one.turn, one.prompt_tokens, one.live, one.simulated)
        table.add_row(*map(str, cells))
    print_table(console, table)
