"""Trace files as numbered JSON values: gzip or plain, a value a line or one value a file."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from marconi_ext.traces.problems import Problems

GZIP_MAGIC = b"\x1f\x8b"
READ_ERRORS = (OSError, EOFError, zlib.error)
BLOCK_BYTES = 2**20


def open_binary(path: Path) -> BinaryIO | gzip.GzipFile:
    """Open a file for reading bytes, through gzip where its first two bytes say so."""
    with path.open("rb") as file:
        packed = file.read(2) == GZIP_MAGIC
    return gzip.open(path, "rb") if packed else path.open("rb")


def why_unreadable(path: Path) -> str | None:
    """What keeps a whole file from being read: it is empty, or it ends early; None if nothing does."""
    try:
        with open_binary(path) as file:
            packed, found = isinstance(file, gzip.GzipFile), False
            while (packed or not found) and (block := file.read(BLOCK_BYTES)):  # gzip tells only at its end
                found = found or bool(block.strip())
    except READ_ERRORS as error:
        return reading_failed(error)
    return None if found else "is empty"


def reading_failed(error: Exception) -> str:
    """What an error of READ_ERRORS says of a file."""
    if isinstance(error, EOFError):
        return "ends early (truncated gzip)"
    return f"can't be read: {getattr(error, 'strerror', None) or error}"


def json_records(path: Path, problems: Problems) -> Iterator[tuple[int, dict]]:
    """Yield (number, object) of a file that holds one object a line, one list of objects, or one object.

    The number counts lines, or the list's items, from 1. What isn't an object is reported.
    """
    document = _whole_document(path)
    if document is None:
        yield from json_lines(path, problems)
        return
    for number, record in enumerate(document if isinstance(document, list) else [document], start=1):
        if isinstance(record, dict):
            yield number, record
        else:
            found = f"record {number}: expected an object, found {type(record).__name__}"
            problems.add(str(path), number, found)


def _whole_document(path: Path) -> Any:
    """The file's one JSON value, where its first line isn't an object of its own; None: read it line by line."""
    try:
        with open_binary(path) as file:
            first = next((line for line in file if line.strip()), b"")
            if not first.lstrip().startswith((b"{", b"[")) or isinstance(decoded(first), dict):
                return None
        with open_binary(path) as file:
            return decoded(file.read())
    except READ_ERRORS:
        return None


def decoded(raw: bytes) -> Any:
    """The JSON value of `raw`, None where it isn't JSON."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


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
        problems.add(str(path), line + 1, reading_failed(error))


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
        problems.add(str(path), 0, reading_failed(error))
    return None
