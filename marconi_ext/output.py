"""What commands write: JSON files, and consoles for tables (stdout) and progress (stderr)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from marconi_ext.errors import BadInputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def to_stdout(path: Path | None) -> bool:
    """Whether `--json -` asks for the JSON on stdout; tables are left out then."""
    return path is not None and str(path) == "-"


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON; to stdout for `-`. Raises BadInputError where the file can't be written."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    if to_stdout(path):
        sys.stdout.write(text)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInputError(f"--json {path}: {error.strerror}") from None


def tables(json: Path | None = None, width: int | None = None) -> Console:
    """The console for what a command shows on stdout; silent where its JSON goes there.

    width: columns where stdout is no terminal, as a table cut to 80 is no use in a log
    """
    from rich.console import Console

    found = Console(quiet=to_stdout(json))
    return found if found.is_terminal or width is None else Console(quiet=found.quiet, width=width)


def print_table(console: Console, table: Table) -> None:
    """Print a table whole: wider than the console rather than with numbers cut off."""
    from rich.console import Console
    from rich.measure import Measurement

    for column in table.columns:
        if column.justify == "right":  # numbers
            column.no_wrap = True
    wanted = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    if wanted <= console.width:
        console.print(table)
        return
    wide = Console(file=console.file, width=wanted, quiet=console.quiet, color_system=_colours(console))
    wide.print(table, soft_wrap=False, crop=False)


def _colours(console: Console) -> Literal["auto"] | None:
    return "auto" if console.is_terminal else None


def stderr_console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def check_writable(path: Path | None, flag: str = "--json") -> None:
    """Raise BadInputError now if a long run could not write a file at its end."""
    if path is None or to_stdout(path):
        return
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise BadInputError(f"{flag} {path}: not a file in an existing folder")
    existed = path.exists()
    if existed and not path.is_file():
        return  # a device, or a pipe
    try:
        path.open("a").close()
    except OSError as error:
        raise BadInputError(f"{flag} {path}: {error.strerror}") from None
    if not existed:
        path.unlink()
