"""The common format: one request a line with session_id, turn_id, ts, input_tokens, output_tokens."""

import gzip
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from marconi_ext.traces import fields
from marconi_ext.traces.files import json_records
from marconi_ext.traces.problems import Problems
from marconi_ext.traces.request import Request


def read(path: Path, problems: Problems) -> Iterator[Request]:
    """Yield the file's requests in its own order; arrival_s counts from the first good line's ts (s)."""
    start_s = None
    for line, record in json_records(path, problems):
        try:
            ts = fields.number(record, "ts")
            request = Request(
                session_id=fields.identifier(record, "session_id"),
                turn=fields.count(record, "turn_id"),
                arrival_s=ts - (ts if start_s is None else start_s),
                input_ids=fields.tokens(record, "input_tokens", empty_ok=False),
                output_ids=fields.tokens(record, "output_tokens", empty_ok=True),
            )
        except fields.BrokenRecordError as error:
            problems.add(str(path), line, str(error))
            continue
        start_s = ts if start_s is None else start_s
        yield request


def write(requests: Iterable[Request], path: Path) -> int:
    """Write requests, gzipped where the name ends in .gz, and return how many there were."""
    written = 0
    with _text_writer(path) as file:
        for request in requests:
            record = {
                "session_id": request.session_id,
                "turn_id": request.turn,
                "ts": request.arrival_s,
                "input_tokens": request.input_ids.tolist(),
                "output_tokens": request.output_ids.tolist(),
            }
            file.write((json.dumps(record, separators=(",", ":")) + "\n").encode())
            written += 1
    return written


@contextmanager
def _text_writer(path: Path) -> Iterator[BinaryIO | gzip.GzipFile]:
    """A binary file whose bytes depend on its content alone: no time stamp in the gzip header."""
    with path.open("wb") as raw:
        if path.suffix != ".gz":
            yield raw
            return
        with gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6, filename="", mtime=0) as packed:
            yield packed
