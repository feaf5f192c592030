"""What commands write: JSON files, and consoles for tables (stdout) and progress (stderr)."""

import json
from pathlib import Path
from typing import Any

from marconi_ext.errors import BadInputError


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON. Raises BadInputError where the file can't be written."""
    try:
        path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadInputError(f"--json {path}: {error.strerror}") from None


def stderr_console():
    from rich.console import Console

    return Console(stderr=True)


def check_writable(path: Path | None) -> None:
    """Raise BadInputError now if a long run could not write its JSON at its end."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise BadInputError(f"--json {path}: not a file in an existing folder")
