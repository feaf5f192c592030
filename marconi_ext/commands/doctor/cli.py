"""`marconi doctor`: check the installation."""

from pathlib import Path
from typing import Annotated

import typer

from marconi_ext.errors import BadInputError


def doctor(
    flags: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- SGLANG_FLAGS]", help="Flags to try: would SGLang take them?"),
    ] = None,
    release: Annotated[
        str | None,
        typer.Option(
            metavar="WHEEL|FOLDER|VERSION",
            help="Instead: what another SGLang release moves of what we rely on, told from its sources.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="WHEEL|FOLDER|VERSION",
            help="Compare --release with this; the installed SGLang if not given.",
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE|-", help="Write the findings as JSON too.")
    ] = None,
) -> None:
    """Check versions, GPU, the plugin and its seams in SGLang, and what would be refused."""
    if release is not None:
        if flags:
            raise BadInputError("--release looks at a release, not at flags: give one or the other")
        _show_release(release, against, json)
        return
    if against is not None:
        raise BadInputError("--against says what --release is compared with: give --release too")
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


def _show_release(release: str, against: str | None, json: Path | None) -> None:
    from rich.table import Table

    from marconi_ext.commands.doctor.release import examine_release
    from marconi_ext.output import check_writable, print_table, stderr_console, tables, write_json
    from marconi_ext.releases.compare import BREAKS

    check_writable(json)
    with stderr_console().status("reading sources"):
        report = examine_release(release, against)
    table = Table(box=None, padding=(0, 1, 0, 0))
    for column in ("", "", "name of SGLang's", "our file", ""):
        table.add_column(column, no_wrap=True)
    for change in report.changes:
        colour = "bold red" if change.finding in BREAKS else "dim"
        table.add_row(
            f"[{colour}]{change.finding}[/]",
            change.kind,
            change.target.removeprefix("sglang.srt."),
            change.where,
            change.detail,
        )
    console = tables(json)
    print_table(console, table)
    fine = report.names - sum(change.kind != "option" for change in report.changes)
    console.print(
        f"SGLang {report.release} against {report.baseline}: of {report.names} names, {fine} are as they were; "
        f"{report.breaks} changes must be acted on.",
        style="bold",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if json:
        write_json(json, report.as_json())
    if report.breaks:
        raise typer.Exit(1)
