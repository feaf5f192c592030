"""A results folder: what a replay or a comparison leaves on disk, for reports and for anybody's own scripts.

    RESULTS/run.json                              what ran: command, machine, versions, trace, arms (RunInfo)
    RESULTS/<arm's folder>/<repeat>/requests.jsonl  one RequestRecord a line, in the order in which they ended
    RESULTS/<arm's folder>/<repeat>/summary.json    their figures (Summary)
    RESULTS/<arm's folder>/<repeat>/server.jsonl    the server while it ran (ServerSnapshot), oldest first

Repeats count from 0. All times ending in `_s` are seconds; points in time count from the replay's start.
A comparison over several traces leaves one such folder a trace, side by side.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from marconi_ext.errors import BadInputError
from marconi_ext.results.models import (
    SCHEMA_VERSION,
    ArmInfo,
    Percentiles,
    RequestRecord,
    ResultModel,
    RunInfo,
    ServerSnapshot,
    Status,
    Summary,
    Timing,
    TraceInfo,
)

__all__ = [
    "SCHEMA_VERSION",
    "ArmInfo",
    "Percentiles",
    "RepeatFolder",
    "RequestRecord",
    "ResultsFolder",
    "RunInfo",
    "ServerSnapshot",
    "Status",
    "Summary",
    "Timing",
    "TraceInfo",
    "arm_folder",
    "find_results",
]

RUN_FILE = "run.json"
REQUESTS_FILE = "requests.jsonl"
SUMMARY_FILE = "summary.json"
SERVER_FILE = "server.jsonl"

Line = TypeVar("Line", bound=ResultModel)


class RepeatFolder:
    """The files of one repeat of one arm."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def requests(self) -> Iterator[RequestRecord]:
        return read_lines(self.path / REQUESTS_FILE, RequestRecord)

    def snapshots(self) -> Iterator[ServerSnapshot]:
        """Oldest first; none where the server wasn't watched."""
        file = self.path / SERVER_FILE
        return read_lines(file, ServerSnapshot) if file.exists() else iter(())

    def summary(self) -> Summary:
        return read_model(self.path / SUMMARY_FILE, Summary)

    def clear(self) -> None:
        """Remove the files of an earlier run."""
        for file in (REQUESTS_FILE, SUMMARY_FILE, SERVER_FILE):
            (self.path / file).unlink(missing_ok=True)

    def write_requests(self, records: Iterable[RequestRecord]) -> None:
        """All at once, in place of what is there."""
        self.path.mkdir(parents=True, exist_ok=True)
        replace_text(
            self.path / REQUESTS_FILE, "".join(record.model_dump_json() + "\n" for record in records)
        )

    def write_summary(self, summary: Summary) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        replace_text(self.path / SUMMARY_FILE, summary.model_dump_json(indent=2) + "\n")

    def append(self, lines: Sequence[RequestRecord | ServerSnapshot]) -> None:
        """Add lines to their files and flush them, so that a killed run keeps what it had."""
        self.path.mkdir(parents=True, exist_ok=True)
        for file, kind in ((REQUESTS_FILE, RequestRecord), (SERVER_FILE, ServerSnapshot)):
            text = "".join(line.model_dump_json() + "\n" for line in lines if isinstance(line, kind))
            if text:
                with (self.path / file).open("a", encoding="utf-8") as stream:
                    stream.write(text)


class ResultsFolder:
    """A whole results folder; reading raises BadInputError for what is missing or isn't what it should be."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def started(self) -> bool:
        """Whether a run began to write here."""
        return (self.path / RUN_FILE).exists()

    def run(self) -> RunInfo:
        """run.json. Refuses a version other than SCHEMA_VERSION."""
        raw = read_json(self.path / RUN_FILE)
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version != SCHEMA_VERSION:
            raise BadInputError(
                f"{self.path / RUN_FILE}: schema_version {version}, this version reads {SCHEMA_VERSION}"
            )
        return parse(RunInfo, raw, str(self.path / RUN_FILE))

    def write_run(self, info: RunInfo) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        replace_text(self.path / RUN_FILE, info.model_dump_json(indent=2) + "\n")

    def repeat(self, arm: ArmInfo, number: int) -> RepeatFolder:
        return RepeatFolder(self.path / arm.folder / str(number))

    def repeats(self, arm: ArmInfo) -> list[RepeatFolder]:
        """Those that were played to their summary, in order."""
        numbers = sorted(int(p.name) for p in (self.path / arm.folder).glob("*") if p.name.isdigit())
        found = [self.repeat(arm, number) for number in numbers]
        return [folder for folder in found if (folder.path / SUMMARY_FILE).exists()]


def arm_folder(name: str) -> str:
    """A folder's name for an arm: `stock:max-states=3` → `stock_max-states=3`."""
    return re.sub(r"[^A-Za-z0-9.=+-]+", "_", name).strip("_.") or "arm"


def find_results(path: str | Path) -> list[ResultsFolder]:
    """The results folder at a path, or those side by side right below it. Raises BadInputError for none."""
    path = Path(path)
    if (path / RUN_FILE).exists():
        return [ResultsFolder(path)]
    found = [ResultsFolder(file.parent) for file in sorted(path.glob(f"*/{RUN_FILE}"))]
    if not found:
        raise BadInputError(f"{path}: no {RUN_FILE} there or one folder below; not a results folder")
    return found


def read_lines(file: Path, model: type[Line]) -> Iterator[Line]:
    """One object a line. A last line that a killed writer cut off is left out."""
    try:
        with file.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if line.endswith("\n") and line.strip():
                    yield parse(model, load_json(line, f"{file}:{number}"), f"{file}:{number}")
    except OSError as error:
        raise BadInputError(f"{file}: {error.strerror}") from None


def read_model(file: Path, model: type[Line]) -> Line:
    return parse(model, read_json(file), str(file))


def read_json(file: Path) -> Any:
    try:
        return load_json(file.read_text(encoding="utf-8"), str(file))
    except OSError as error:
        raise BadInputError(f"{file}: {error.strerror}") from None


def load_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadInputError(f"{where}: not JSON ({error})") from None


def parse(model: type[Line], value: Any, where: str) -> Line:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the object"
        raise BadInputError(f"{where}: {field}: {first['msg']}") from None


def replace_text(file: Path, text: str) -> None:
    """Write a whole file, or leave the one that is there."""
    try:
        beside = file.with_name(file.name + ".new")
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, file)
    except OSError as error:
        raise BadInputError(f"{file}: {error.strerror}") from None
