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

    from marconi_ext.commands.doctor.run import examine
    from marconi_ext.errors import CheckFailedError
    from marconi_ext.output import check_writable, stderr_console, tables, write_json

    check_writable(json)
    colours = {"ok": "green", "info": "dim", "warning": "yellow", "broken": "bold red"}
    with stderr_console().status("looking at Python, packages and SGLang"):
        findings = list(examine(tuple(flags or ())))
    table = Table(show_header=False, box=None, padding=(0, 1, 0, 0))
    for _ in range(3):
        table.add_column(overflow="fold")
    before = None
    for finding in findings:
        colour = colours[finding.status]
        detail = finding.detail + (f"\n→ {finding.fix}" if finding.fix else "")
        check, before = ("" if finding.check == before else finding.check), finding.check
        table.add_row(f"[{colour}]{finding.status}[/]", check, detail.replace("[", r"\["))
    tables(json).print(table)
    broken = [finding.check for finding in findings if finding.status == "broken"]
    if json:
        write_json(json, {"ok": not broken, "findings": [finding.as_json() for finding in findings]})
    if broken:
        raise CheckFailedError(f"broken: {', '.join(broken)}")
