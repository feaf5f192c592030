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
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from marconi_ext.errors import BadInputError

SCHEMA_VERSION = 1
RUN_FILE = "run.json"
REQUESTS_FILE = "requests.jsonl"
SUMMARY_FILE = "summary.json"
SERVER_FILE = "server.jsonl"


class Status(StrEnum):
    """What came of a request."""

    OK = "ok"
    HTTP = "http"  # an HTTP status other than 200
    TIMEOUT = "timeout"
    CONNECTION = "connection"  # refused, or lost before an answer began
    MALFORMED = "malformed"  # the stream broke off, or isn't what the protocol promises
    ABORTED = "aborted"  # the server ended it of its own
    CANCELLED = "cancelled"  # open when the run was stopped
    UNSENT = "unsent"  # never sent: the run was stopped, or what it builds on failed


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class RequestRecord(_Model):
    """One request of a replay. Points in time are None where they never came.

    due_s: when the trace wants it, speed applied; None in a closed loop
    ready_s: when it could go: due, and the turn before ended
    sent_s: when its first attempt was sent; sent_s − ready_s is how long the replayer held it back
    ttft_s, itl_s, end_s: first token after sent_s; gaps between later chunks with tokens; end of the answer
    retries, retry_s: failed attempts before the last one, and the part of ttft_s that they took
    prompt_tokens: as sent; server_prompt_tokens: as the server counts them (text is tokenised there)
    cached_tokens: prompt tokens that the server says it reused; None where it doesn't say
    ideal_tokens: what an unlimited attention-only radix cache would have reused, in the server's tokens
    state_tokens: what an unlimited cache of exact states would have reused, at most ideal_tokens
    prompt_digest, output_digest: of the token ids, to tell equal prompts and answers of two runs
    """

    session_id: str
    turn: int
    status: Status
    error: str = ""
    http_status: int | None = None
    due_s: float | None = None
    ready_s: float | None = None
    sent_s: float | None = None
    ttft_s: float | None = None
    itl_s: list[float] = Field(default_factory=list)
    end_s: float | None = None
    retries: int = 0
    retry_s: float = 0.0
    prompt_tokens: int = 0
    server_prompt_tokens: int | None = None
    cached_tokens: int | None = None
    ideal_tokens: int | None = None
    state_tokens: int | None = None
    output_tokens: int = 0
    prompt_digest: str = ""
    output_digest: str = ""

    @property
    def held_s(self) -> float | None:
        """How long the replayer kept a request back that could have gone (rate limit, open limit, own load)."""
        return None if self.sent_s is None or self.ready_s is None else self.sent_s - self.ready_s

    @property
    def late_s(self) -> float | None:
        """How long after the trace's time it was sent, waiting for the turn before included."""
        return None if self.sent_s is None or self.due_s is None else self.sent_s - self.due_s

    @property
    def lost_tokens(self) -> int | None:
        """Ideal tokens that the server computed again."""
        if self.ideal_tokens is None or self.cached_tokens is None:
            return None
        return max(0, self.ideal_tokens - self.cached_tokens)


class Percentiles(_Model):
    """Of n values, all in the unit of the field that holds them."""

    n: int
    p5: float
    p50: float
    p95: float
    p99: float
    mean: float
    max: float


class Summary(_Model):
    """Figures of one replay. Tokens and times are over answered requests; rates in % of prompt tokens.

    prompt_tokens: as the server counts them, where it says
    by_status: requests by Status, those never sent included; retries: attempts that failed and were repeated
    state_limited_loss = first_divergence + avoidable: ideal tokens computed again
    token_counts_differ: requests whose prompt the server counted otherwise, so that ideal is an estimate
    held_s, late_s: over requests sent; loop_lag_s: delays of the replayer's own event loop
    most_open: requests in flight at once at most; states_held: at the end; evictions: of states, while it ran
    server_counters: what the extension's counters rose by; server_loss_tokens: its loss by cause
    """

    requests: int
    answered: int
    by_status: dict[Status, int]
    retries: int
    retried_requests: int
    prompt_tokens: int
    cached_tokens: int | None
    ideal_tokens: int
    state_tokens: int
    output_tokens: int
    hit_rate: float | None
    ideal_hit_rate: float
    state_limited_loss: float | None
    first_divergence: float | None
    avoidable: float | None
    token_counts_differ: int
    ttft_s: Percentiles | None
    itl_s: Percentiles | None
    request_s: Percentiles | None
    held_s: Percentiles | None
    late_s: Percentiles | None
    loop_lag_s: Percentiles | None
    most_open: int
    duration_s: float
    requests_per_s: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    interrupted: bool = False
    error: str | None = None
    states_held: int | None = None
    evictions: int | None = None
    server_counters: dict[str, float] = Field(default_factory=dict)
    server_loss_tokens: dict[str, int] = Field(default_factory=dict)


class ServerSnapshot(_Model):
    """The server at one moment.

    marconi: the extension's section of /server_info (rank 0); None where it isn't live
    metrics: the engine's Prometheus samples, `name{labels}` -> value; empty without --enable-metrics
    """

    at_s: float
    marconi: dict[str, Any] | None = None
    metrics: dict[str, float] = Field(default_factory=dict)


class ArmInfo(_Model):
    """One arm of a comparison, or the one server of a replay.

    name: as asked for; folder: its folder's name; flags: the server's command line; status_line: the
    extension's line in the log, None where the arm is stock
    """

    name: str
    folder: str
    meaning: str = ""
    flags: list[str] = Field(default_factory=list)
    status_line: str | None = None
    page_size: int = 1


class TraceInfo(_Model):
    """What was replayed.

    source: file, folder or synthetic:NAME; digest: of all prompts' token ids in order
    selection: options that cut it down (sessions, limit, max_prompt_tokens, scale, …)
    """

    source: str
    requests: int
    sessions: int
    prompt_tokens: int
    digest: str
    selection: dict[str, Any] = Field(default_factory=dict)


class Timing(_Model):
    """loop: 'open' keeps the trace's times, 'closed' sends as soon as one of `concurrency` places is free."""

    loop: Literal["open", "closed"]
    speed: float | None = None
    max_rate: float | None = None
    concurrency: int | None = None
    history: Literal["trace", "own"] = "trace"


class RunInfo(_Model):
    """run.json. order: (arm's name, repeat) in the order in which they ran; provenance: see provenance.py."""

    schema_version: int = SCHEMA_VERSION
    created: str
    title: str
    provenance: dict[str, Any]
    model: dict[str, Any] = Field(default_factory=dict)
    trace: TraceInfo
    timing: Timing
    arms: list[ArmInfo]
    repeats: int
    order: list[tuple[str, int]] = Field(default_factory=list)
    finished: bool = False
    error: str | None = None


Line = TypeVar("Line", bound=_Model)


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
