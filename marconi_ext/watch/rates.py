"""What happened between two polls, or since the server's start, as numbers for a view and for JSON (pure)."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from marconi_ext.watch.server import Poll


@dataclass(frozen=True)
class Activity:
    """Rates over `seconds`, or totals where that is None. Percentages are of prompt tokens; None: no prompts.

    loss_percent: cause -> tokens prefilled again for want of a state
    evictions: "kind, reason" -> states; saves, refusals: kind -> states (a second, or in all)
    """

    seconds: float | None
    requests: float
    prompt_tokens: float
    prefilled_tokens: float
    hit_percent: float | None
    kv_hit_percent: float | None
    loss_percent: dict[str, float]
    saves: dict[str, float]
    refusals: dict[str, float]
    evictions: dict[str, float]
    planning_failures: float


@dataclass(frozen=True)
class Standing:
    """What is so right now, over all ranks; tuning and parameters are the first rank's.

    differences: between the policy's table and the tree, and requests whose sums were wrong
    """

    states: dict[str, int]
    slots: dict[str, int]
    differences: int
    tuning: dict[str, float]
    parameters: dict[str, float]
    pins: dict[str, Any] = field(default_factory=dict)
    tenants: dict[str, int] = field(default_factory=dict)


def totals(poll: Poll) -> Counter[tuple[str, ...]]:
    """Every counter of all ranks, by a flat name."""
    total: Counter[tuple[str, ...]] = Counter()
    for rank in poll.ranks:
        stats = rank["stats"]
        for name in ("requests", "prompt_tokens", "hit_tokens", "kv_tokens"):
            total[(name,)] += stats[name]
        for group in ("lost_tokens", "saves", "refusals", "planning_failures"):
            for name, count in stats[group].items():
                total[group, name] += count
        for row in stats["evictions"]:
            total["evictions", f"{row['kind']}, {row['reason']}"] += row["states"]
    return total


def activity(now: Poll, before: Poll | None = None) -> Activity:
    """Between two polls; without an earlier one, since the server's start."""
    counts = totals(now) if before is None else growth(now, before)
    seconds = None if before is None else max(now.at_s - before.at_s, 1e-9)
    per = 1.0 if seconds is None else seconds
    prompts = counts[("prompt_tokens",)]

    def percent(tokens: float) -> float:
        return 100 * tokens / prompts if prompts else 0.0

    def group(name: str) -> dict[str, float]:
        return {key[1]: count / per for key, count in sorted(counts.items()) if key[0] == name}

    return Activity(
        seconds=seconds,
        requests=counts[("requests",)] / per,
        prompt_tokens=prompts / per,
        prefilled_tokens=(prompts - counts[("hit_tokens",)]) / per,
        hit_percent=percent(counts[("hit_tokens",)]) if prompts else None,
        kv_hit_percent=percent(counts[("kv_tokens",)]) if prompts else None,
        loss_percent={cause: percent(tokens * per) for cause, tokens in group("lost_tokens").items()},
        saves=group("saves"),
        refusals=group("refusals"),
        evictions=group("evictions"),
        planning_failures=sum(group("planning_failures").values()),
    )


def restarted(now: Poll, before: Poll) -> bool:
    """Whether counters went down, as they do only where the server was started again."""
    return any(count < 0 for count in growth(now, before).values())


def growth(now: Poll, before: Poll) -> Counter[tuple[str, ...]]:
    """What each counter grew by, zeros included."""
    difference = totals(now)
    difference.subtract(totals(before))
    return difference


def standing(poll: Poll) -> Standing:
    states: Counter[str] = Counter()
    slots: Counter[str] = Counter()
    for rank in poll.ranks:
        states.update(rank["stats"]["states"])
        slots.update(rank["slots"])
    first = poll.ranks[0]
    found = [rank.get("table", {}).get("differences", 0) for rank in poll.ranks]
    found += [rank["stats"].get("wrong_sums", 0) for rank in poll.ranks]
    return Standing(
        dict(sorted(states.items())),
        dict(slots),
        sum(found),
        first["stats"]["tuning"],
        first["policy"]["parameters"],
        first.get("pins", {}),
        first.get("tenants", {}),
    )


def as_json(poll: Poll, before: Poll | None) -> dict[str, Any]:
    """Everything a view shows; `last` is null at the first poll."""
    return {
        "model": poll.model,
        "version": poll.ranks[0]["version"],
        "sglang": poll.sglang,
        "ranks": len(poll.ranks),
        "total": asdict(activity(poll)),
        "last": None if before is None else asdict(activity(poll, before)),
        "now": asdict(standing(poll)),
        "decode_tokens_per_s": poll.decode_tokens_per_s,
        **poll.gauges,
    }
