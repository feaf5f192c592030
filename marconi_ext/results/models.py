"""What the files of a results folder hold. All times ending in `_s` are seconds."""

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1


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


class ResultModel(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class RequestRecord(ResultModel):
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
    warm_tokens: the part of cached_tokens that nothing of this run can have put into the cache
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
    warm_tokens: int | None = None
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


class Percentiles(ResultModel):
    """Of n values, all in the unit of the field that holds them."""

    n: int
    p5: float
    p50: float
    p95: float
    p99: float
    mean: float
    max: float


class Summary(ResultModel):
    """Figures of one replay. Tokens and times are over answered requests; rates in % of prompt tokens.

    prompt_tokens: as the server counts them, where it says
    by_status: requests by Status, those never sent included; retries: attempts that failed and were repeated
    state_limited_loss = first_divergence + avoidable: ideal tokens computed again
    warm_tokens, warm_requests: of cached_tokens, what was in the cache before the run, and in how many requests: at
    least so much; above 0 the loss is too low, as states from before served as well
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
    warm_tokens: int = 0
    warm_requests: int = 0
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


class ServerSnapshot(ResultModel):
    """The server at one moment.

    marconi: the extension's section of /server_info (rank 0); None where it isn't live
    metrics: the engine's Prometheus samples, `name{labels}` -> value; empty without --enable-metrics
    """

    at_s: float
    marconi: dict[str, Any] | None = None
    metrics: dict[str, float] = Field(default_factory=dict)


class ArmInfo(ResultModel):
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


class TraceInfo(ResultModel):
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


class Timing(ResultModel):
    """loop: 'open' keeps the trace's times, 'closed' sends as soon as one of `concurrency` places is free."""

    loop: Literal["open", "closed"]
    speed: float | None = None
    max_rate: float | None = None
    concurrency: int | None = None
    history: Literal["trace", "own"] = "trace"


class RunInfo(ResultModel):
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
