"""Figures of one run: what was reused, what was lost and why, how long the first token took."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache

import numpy as np

from marconi_ext.replay.client import OK
from marconi_ext.replay.sender import Record, Run
from marconi_ext.results.ideal import Reusable, Served, explained_in_run, reusable_in_run
from marconi_ext.results.reuse import add_up


@dataclass(frozen=True)
class Figures:
    """Sums over requests that were answered; lengths in tokens, rates in % of prompt tokens.

    ideal_tokens: what an unlimited attention-only radix cache would have reused
    state_limited_loss = first_divergence + avoidable: ideal tokens computed again
    prefill_ratio: tokens prefilled / tokens that the ideal cache would have prefilled
    """

    requests: int
    failed: int
    unsent: int
    prompt_tokens: int
    cached_tokens: int
    ideal_tokens: int
    output_tokens: int
    state_limited_loss: float
    first_divergence: float
    avoidable: float
    hit_rate: float
    ideal_hit_rate: float
    prefilled_tokens: int
    prefill_ratio: float
    ttft_p50_ms: float
    ttft_p95_ms: float
    duration_s: float

    def as_json(self) -> dict:
        return asdict(self)


def measure(runs: list[Run], page_size: int = 1) -> Figures:
    """Figures of runs, each of which began with an empty cache."""
    answered = [(record, reusable) for run in runs for record, reusable in yardstick(run, page_size)]
    reuse = add_up((len(record.prompt), record.answer.cached_tokens, found) for record, found in answered)
    prompt, cached, ideal = reuse.prompt_tokens, reuse.cached_tokens, reuse.ideal_tokens
    ttft_s = (record.answer.ttft_s for record, _ in answered)
    ttft_ms = [1e3 * seconds for seconds in ttft_s if seconds is not None]
    p50, p95 = np.percentile(ttft_ms, [50, 95]) if ttft_ms else (0.0, 0.0)
    return Figures(
        requests=len(answered),
        failed=sum(len(run.failed) for run in runs),
        unsent=sum(run.unsent for run in runs),
        prompt_tokens=prompt,
        cached_tokens=cached,
        ideal_tokens=ideal,
        output_tokens=sum(len(record.answer.output_ids) for record, _ in answered),
        **reuse.rates(),
        prefilled_tokens=prompt - cached,
        prefill_ratio=round((prompt - cached) / (prompt - ideal), 4) if prompt > ideal else 0.0,
        ttft_p50_ms=round(float(p50), 2),
        ttft_p95_ms=round(float(p95), 2),
        duration_s=round(sum(duration_s(run) for run in runs), 3),
    )


def yardstick(run: Run, page_size: int) -> list[tuple[Record, Reusable]]:
    """Each answered request with what it could have reused.

    With requests in flight at once, a server may match later than a request was sent, and find more than
    was there then; what it reports as cached then counts as ideal too, as far as this run can have put it there.
    What it reports beyond that was cached before the run: it is told as `warm_tokens`, and no ideal of such a run is
    raised.
    A server that counts other prompt tokens than we sent (it tokenises text itself) gets our figures in its
    tokens, in proportion: an estimate, in which only what the first request is served can be told to be warm.
    """
    answered = [record for record in run.records if record.answer.status == OK]
    found = []
    explained = _explained(run.records)
    for record, reusable in zip(
        answered, reusable_in_run([_served(r) for r in answered], page_size), strict=True
    ):
        factor = (record.answer.prompt_tokens or len(record.prompt)) / len(record.prompt)
        cached, ideal = record.answer.cached_tokens or 0, int(reusable.ideal_tokens * factor)
        most = ideal if cached <= ideal else max(ideal, explained(record))
        state = int(reusable.state_tokens * factor)
        raised = Reusable(max(ideal, min(cached, most)), state, max(0, cached - most))
        found.append((record, raised, ideal))
    if any(raised.warm_tokens for _, raised, _ in found):
        return [(record, replace(raised, ideal_tokens=ideal)) for record, raised, ideal in found]
    return [(record, raised) for record, raised, _ in found]


def _served(record: Record) -> Served:
    answer = record.answer
    first_s = answer.end_s if answer.first_token_s is None else answer.first_token_s
    return Served(record.prompt, answer.output_ids, answer.sent_s + answer.retry_s, first_s, answer.end_s)


def _explained(records: list[Record]) -> Callable[[Record], int]:
    """What a run can have put into the cache of a request's prompt, failed requests included; in server tokens."""
    most = cache(lambda: explained_in_run([_served(record) for record in records]))  # seldom asked for
    place = {id(record): n for n, record in enumerate(records)}
    counts_differ = any(r.answer.prompt_tokens not in (None, 0, len(r.prompt)) for r in records)
    first_sent_s = min((record.answer.sent_s for record in records), default=0.0)

    def of(record: Record) -> int:
        whole = record.answer.prompt_tokens or len(record.prompt)
        if record.answer.retries or (counts_differ and record.answer.sent_s > first_sent_s):
            return whole  # an attempt that broke off may have left its prompt there; other tokens can't be compared
        return most()[place[id(record)]]()

    return of


def answers_that_differ(run: Run, other: Run) -> int:
    """Requests answered in both runs whose prompts were equal and whose answers weren't.

    Answers feed later prompts, so only the first difference of a conversation is counted.
    """
    theirs = {(record.session_id, record.turn): record for record in other.records}
    differ = 0
    for record in run.records:
        twin = theirs.get((record.session_id, record.turn))
        if twin and np.array_equal(record.prompt, twin.prompt):
            differ += not np.array_equal(record.answer.output_ids, twin.answer.output_ids)
    return differ


def duration_s(run: Run) -> float:
    """From the first request sent to the last one ended."""
    if not run.records:
        return 0.0
    answers = [record.answer for record in run.records]
    return max(answer.end_s for answer in answers) - min(answer.sent_s for answer in answers)
