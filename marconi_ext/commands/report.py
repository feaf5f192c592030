"""`marconi report`: a page of what a replay or a comparison measured."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[
        list[Path], typer.Argument(help="Results folders of marconi replay or bench, or folders of such.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to write; default: RESULTS/report of the first."),
    ] = None,
    title: Annotated[str, typer.Option(help="The page's title.")] = "Prefix caching, measured",
    json: Annotated[
        Path | None, typer.Option(metavar="FILE|-", help="Write the figures as JSON too.")
    ] = None,
) -> None:
    """Draw one HTML file that needs no network, its pictures as PNG, and Markdown for a pull request."""
    from marconi_ext.output import check_writable, stderr_console, tables, write_json
    from marconi_ext.report.document import HTML_FILE, MARKDOWN_FILE, write_report

    check_writable(json)
    folder = out or results[0] / "report"
    with stderr_console().status("reading results and drawing"):
        sections = write_report(results, folder, title)
    if json:
        write_json(json, {"comparisons": [section.comparison.as_json() for section in sections]})
    pictures = sum(len(section.charts) for section in sections)
    tables(json).print(
        f"{folder / HTML_FILE}, {folder / MARKDOWN_FILE} and {pictures} pictures",
        soft_wrap=True,
        markup=False,
    )
