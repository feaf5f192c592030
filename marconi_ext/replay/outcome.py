"""What a run has to show: one record a request with its ideal reuse, and their summary."""

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from marconi_ext.replay.measure import yardstick
from marconi_ext.replay.sender import Pacing, Record, Run
from marconi_ext.results.folder import Percentiles, RequestRecord, ServerSnapshot, Status, Summary, Timing
from marconi_ext.results.ideal import Reusable
from marconi_ext.results.reuse import add_up

INTERRUPTED = "interrupted"
STOCK_STATES = (
    "sglang:mamba_evictable_tokens",
    "sglang:mamba_used_tokens",
)  # counted in slots, their name aside
GAUGES = re.compile(r"^slots\.|(^|\.)(states|parameters)\.")  # they say what is, and don't count
DIGITS = 6  # of seconds: microseconds


def timing(pacing: Pacing, history: Literal["trace", "own"]) -> Timing:
    """How requests were paced, as results keep it."""
    return Timing(
        loop="open" if pacing.timed else "closed",
        speed=pacing.speed if pacing.timed else None,
        max_rate=pacing.max_rate,
        concurrency=pacing.concurrency,
        history=history,
    )


def as_record(record: Record, began_s: float, reusable: Reusable | None = None) -> RequestRecord:
    """A request as results keep it; times count from began_s."""
    answer = record.answer

    def since(moment_s: float | None) -> float | None:
        return None if moment_s is None else round(moment_s - began_s, DIGITS)

    gaps_s = np.round(np.diff(answer.chunk_s), DIGITS).tolist() if len(answer.chunk_s) > 1 else []
    return RequestRecord(
        session_id=record.session_id,
        turn=record.turn,
        status=Status(answer.status),
        error=answer.error,
        http_status=answer.http_status,
        due_s=since(record.due_s),
        ready_s=since(record.ready_s),
        sent_s=since(answer.sent_s),
        ttft_s=None if answer.ttft_s is None else round(answer.ttft_s, DIGITS),
        itl_s=gaps_s,
        end_s=since(answer.end_s),
        retries=answer.retries,
        retry_s=round(answer.retry_s, DIGITS),
        prompt_tokens=len(record.prompt),
        server_prompt_tokens=answer.prompt_tokens or None,
        cached_tokens=answer.cached_tokens,
        ideal_tokens=reusable.ideal_tokens if reusable else None,
        state_tokens=reusable.state_tokens if reusable else None,
        warm_tokens=reusable.warm_tokens if reusable else None,
        output_tokens=answer.completion_tokens or len(answer.output_ids),
        prompt_digest=digest(record.prompt),
        output_digest=digest(answer.output_ids),
    )


def digest(ids: np.ndarray) -> str:
    """A short name for token ids, int32[n]."""
    return f"{zlib.crc32(np.ascontiguousarray(ids).data):08x}"


def all_records(run: Run, page_size: int) -> list[RequestRecord]:
    """Every request of a run in the order in which they ended, those never sent last."""
    ideal = {id(record): reusable for record, reusable in yardstick(run, page_size)}
    found = [as_record(record, run.began_s, ideal.get(id(record))) for record in run.records]
    why = run.stopped or "a request that it builds on failed"
    found += [
        RequestRecord(session_id=item.session_id, turn=item.turn, status=Status.UNSENT, error=why)
        for item in run.left
    ]
    return found


def summarise(
    records: Sequence[RequestRecord],
    run: Run,
    snapshots: Sequence[ServerSnapshot] = (),
    error: str | None = None,
) -> Summary:
    """The figures of one run. `error`: what went wrong besides requests."""
    answered = [r for r in records if r.status == Status.OK]
    sent = [r for r in records if r.status != Status.UNSENT]
    reuse = add_up(
        (
            r.server_prompt_tokens or r.prompt_tokens,
            r.cached_tokens,
            Reusable(r.ideal_tokens or 0, r.state_tokens or 0),
        )
        for r in answered
    )
    rates: dict[str, Any] = dict(reuse.rates())
    output = sum(r.output_tokens for r in answered)
    known = bool(answered) and all(r.cached_tokens is not None for r in answered)
    if not known:  # the ideal needs no word of the server
        rates = {name: rate if name == "ideal_hit_rate" else None for name, rate in rates.items()}
    ends = [r.end_s for r in sent if r.end_s is not None]
    starts = [r.sent_s for r in sent if r.sent_s is not None]
    duration_s = max(ends) - min(starts) if ends and starts else 0.0
    counted = server_figures(snapshots)
    return Summary(
        requests=len(records),
        answered=len(answered),
        by_status=dict(Counter(r.status for r in records)),
        retries=sum(r.retries for r in records),
        retried_requests=sum(r.retries > 0 for r in records),
        prompt_tokens=reuse.prompt_tokens,
        cached_tokens=reuse.cached_tokens if known else None,
        ideal_tokens=reuse.ideal_tokens,
        state_tokens=sum(r.state_tokens or 0 for r in answered),
        output_tokens=output,
        warm_tokens=sum(r.warm_tokens or 0 for r in answered),
        warm_requests=sum(bool(r.warm_tokens) for r in answered),
        token_counts_differ=sum(r.server_prompt_tokens not in (None, r.prompt_tokens) for r in answered),
        ttft_s=percentiles(r.ttft_s for r in answered),
        itl_s=percentiles(gap for r in answered for gap in r.itl_s),
        request_s=percentiles(
            r.end_s - r.sent_s for r in answered if r.end_s is not None and r.sent_s is not None
        ),
        held_s=percentiles(r.held_s for r in sent),
        late_s=percentiles(r.late_s for r in sent),
        loop_lag_s=percentiles(run.loop_lag_s),
        most_open=run.most_open,
        duration_s=round(duration_s, DIGITS),
        requests_per_s=rate(len(answered), duration_s),
        prompt_tokens_per_s=rate(reuse.prompt_tokens, duration_s),
        output_tokens_per_s=rate(output, duration_s),
        interrupted=run.stopped == INTERRUPTED,
        error=error or run.stopped,
        **rates,
        **counted,
    )


def percentiles(values: Iterable[float | None]) -> Percentiles | None:
    """Of the values that are there; None if none is."""
    found = np.array([value for value in values if value is not None])
    if not len(found):
        return None
    p5, p50, p95, p99 = np.round(np.percentile(found, [5, 50, 95, 99]), DIGITS).tolist()
    return Percentiles(
        n=len(found),
        p5=p5,
        p50=p50,
        p95=p95,
        p99=p99,
        mean=round(float(found.mean()), DIGITS),
        max=round(float(found.max()), DIGITS),
    )


def rate(count: float, seconds: float) -> float:
    return round(count / seconds, 3) if seconds else 0.0


def server_figures(snapshots: Sequence[ServerSnapshot]) -> dict:
    """Of a Summary: states held, evictions, counters and loss by cause, from the first to the last snapshot.

    Counters are the numbers in the extension's section, by their path; only those that rose are kept.
    A stock server tells the states that it holds in its metrics, and no evictions.
    """
    if not snapshots:
        return {}
    sections = [s.marconi for s in snapshots if s.marconi]
    if len(sections) < 2:
        metrics = snapshots[-1].metrics
        held = [metrics[name] for name in STOCK_STATES if name in metrics]
        return {"states_held": int(sum(held))} if held else {}
    first, last = dict(numbers(sections[0])), dict(numbers(sections[-1]))
    rose = {path: value - first.get(path, 0) for path, value in last.items() if not GAUGES.search(path)}
    rose = {path: value for path, value in rose.items() if value > 0}

    def under(name: str, values: dict[str, float]) -> dict[str, float]:
        return {p.rsplit(".", 1)[-1]: v for p, v in values.items() if f".{name}." in f".{p}"}

    by_kind = under("states", last)
    cached = last.get("slots.cached", sum(by_kind.values()) if by_kind else None)
    evicted = {name: count for name, count in under("evictions", rose).items() if "flush" not in name}
    return {
        "server_counters": rose,
        "server_loss_tokens": {cause: int(v) for cause, v in under("lost_tokens", rose).items()},
        "evictions": int(sum(evicted.values())) if under("evictions", last) else None,
        "states_held": None if cached is None else int(cached),
    }


def numbers(value: object, path: str = "") -> Iterable[tuple[str, float]]:
    """(path, number) of all numbers in nested JSON; list entries go by their texts, like `tail/pool-full`."""
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        yield path, float(value)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from numbers(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            named = isinstance(inner, dict) and "/".join(str(v) for v in inner.values() if isinstance(v, str))
            count = [v for v in inner.values() if isinstance(v, int | float)] if named else []
            if len(count) == 1:
                yield f"{path}.{named}", float(count[0])
            else:
                yield from numbers(inner, f"{path}.{place}")
