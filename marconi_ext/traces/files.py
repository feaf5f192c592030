"""Trace files as numbered JSON values: gzip or plain, a value a line or one value a file."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from marconi_ext.traces.problems import Problems

GZIP_MAGIC = b"\x1f\x8b"
READ_ERRORS = (OSError, EOFError, zlib.error)


def open_binary(path: Path):
    """Open a file for reading bytes, through gzip where its first two bytes say so."""
    with path.open("rb") as file:
        packed = file.read(2) == GZIP_MAGIC
    return gzip.open(path, "rb") if packed else path.open("rb")


def json_lines(path: Path, problems: Problems) -> Iterator[tuple[int, dict]]:
    """Yield (line number, object) for each line; blank lines are passed over, broken ones reported."""
    line = 0
    try:
        with open_binary(path) as file:
            for line, raw in enumerate(file, start=1):
                if not raw.strip():
                    continue
                try:
                    value = json.loads(raw)
                except (ValueError, RecursionError) as error:
                    problems.add(str(path), line, f"not JSON: {error}")
                    continue
                if isinstance(value, dict):
                    yield line, value
                else:
                    problems.add(str(path), line, f"expected an object, found {type(value).__name__}")
    except READ_ERRORS as error:
        problems.add(str(path), line + 1, f"can't be read further: {error}")


def json_document(path: Path, problems: Problems) -> Any:
    """Return the file's one JSON value, or None (with the problem noted)."""
    try:
        with open_binary(path) as file:
            return json.loads(file.read())
    except json.JSONDecodeError as error:
        problems.add(str(path), error.lineno, f"not JSON: {error.msg}")
    except (ValueError, RecursionError) as error:
        problems.add(str(path), 0, f"not JSON: {error}")
    except READ_ERRORS as error:
        problems.add(str(path), 0, f"can't be read: {error}")
    return None
