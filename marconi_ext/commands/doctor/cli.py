"""`marconi doctor`: check the installation."""

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    flags: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- SGLANG_FLAGS]", help="Flags to try: would SGLang take them?"),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE|-", help="Write the findings as JSON too.")
    ] = None,
) -> None:
    """Check versions, GPU, the plugin and its seams in SGLang, and what would be refused."""
    from rich.table import Table

    from marconi_ext.commands.doctor.run import examine, shown, verdict
    from marconi_ext.output import check_writable, stderr_console, tables, write_json

    check_writable(json)
    colours = {
        "ok": "green",
        "info": "dim",
        "live": "bold green",
        "stock": "yellow",
        "warning": "yellow",
        "refused": "bold red",
        "broken": "bold red",
    }
    with stderr_console().status("looking at Python, packages and SGLang"):
        findings = list(examine(tuple(flags or ())))
    table = Table(show_header=False, box=None, padding=(0, 1, 0, 0))
    for _ in range(3):
        table.add_column(overflow="fold")
    for finding in shown(findings):
        detail = finding.detail + (f"\n→ {finding.fix}" if finding.fix else "")
        table.add_row(
            f"[{colours[finding.status]}]{finding.status}[/]", finding.check, detail.replace("[", r"\[")
        )
    sentence, code = verdict(findings)
    console = tables(json)
    console.print(table)
    console.print(sentence, style="bold", markup=False, highlight=False, soft_wrap=True)
    if json:
        found = [finding.as_json() for finding in findings]
        write_json(json, {"ok": not code, "verdict": sentence, "findings": found})
    if code:
        raise typer.Exit(code)
