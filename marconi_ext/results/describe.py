"""What a trace is like: lengths, timing, sharing, and what an ideal cache would reuse."""

from collections.abc import Iterable

import numpy as np

from marconi_ext.results.ideal import IdealCache
from marconi_ext.results.patterns import Sessions
from marconi_ext.results.percent import percent
from marconi_ext.traces.request import Request


def describe(requests: Iterable[Request]) -> dict:
    """Read a trace once and return its figures; lengths in tokens, rates in % of all prompt tokens."""
    cache, patterns = IdealCache(), Sessions()
    prompts: list[int] = []
    answers: list[int] = []
    ideal: list[int] = []
    first_divergence: list[int] = []
    turns: dict[str, int] = {}
    across = 0
    latest_s = 0.0
    for request in requests:
        reusable = cache.serve(request)
        patterns.add(request)
        prompts.append(len(request.input_ids))
        answers.append(len(request.output_ids))
        ideal.append(reusable.ideal_tokens)
        first_divergence.append(reusable.first_divergence_tokens)
        if request.session_id not in turns:
            across += reusable.ideal_tokens
        turns[request.session_id] = turns.get(request.session_id, 0) + 1
        latest_s = max(latest_s, request.arrival_s)
    total = max(sum(prompts), 1)
    return {
        "requests": len(prompts),
        "sessions": len(turns),
        "duration_s": round(latest_s, 3),
        "turns_per_session": spread(list(turns.values())),
        "prompt_tokens": sum(prompts),
        "prompt_length": spread(prompts),
        "answer_tokens": sum(answers),
        "answer_length": spread(answers),
        "requests_with_reuse": sum(tokens > 0 for tokens in ideal),
        "ideal_tokens": sum(ideal),
        "ideal_hit_rate": percent(sum(ideal), total),
        "ideal_across_sessions": percent(across, total),
        "first_divergence": percent(sum(first_divergence), total),
        "patterns": patterns.figures(),
    }


def spread(values: list[int]) -> dict[str, float]:
    """min, P50, P90, max and mean of whole numbers; zeros where there are none."""
    if not values:
        return dict.fromkeys(("min", "p50", "p90", "max", "mean"), 0)
    p50, p90 = np.percentile(values, [50, 90])
    return {
        "min": min(values),
        "p50": round(float(p50), 1),
        "p90": round(float(p90), 1),
        "max": max(values),
        "mean": round(sum(values) / len(values), 1),
    }
