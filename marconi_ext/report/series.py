"""What the charts draw, worked out of a results folder: numbers only (pure but for reading the files)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from marconi_ext.results.folder import RequestRecord, ResultsFolder, ServerSnapshot, Status

TIME_BINS = 40
LENGTH_BINS = 6
STOCK_STATES = "sglang:mamba_evictable_tokens"
"""SGLang's own gauge of states in its tree that no request uses: all that a stock server tells of them."""


@dataclass(frozen=True)
class ArmSeries:
    """One arm: a list of answered requests and a list of snapshots for each repeat."""

    name: str
    runs: list[list[RequestRecord]]
    snapshots: list[list[ServerSnapshot]]


@dataclass(frozen=True, eq=False)
class Lines:
    """Values over x by name, each float64[len(x)], NaN where there is none."""

    x: np.ndarray
    y: dict[str, np.ndarray]


def read_arms(folder: ResultsFolder) -> list[ArmSeries]:
    """The arms that have at least one repeat with an answered request."""
    arms = []
    for arm in folder.run().arms:
        repeats = folder.repeats(arm)
        runs = [[r for r in repeat.requests() if r.status == Status.OK] for repeat in repeats]
        if any(runs):
            arms.append(ArmSeries(arm.name, runs, [list(repeat.snapshots()) for repeat in repeats]))
    return arms


def ttft_cdf(arm: ArmSeries) -> tuple[np.ndarray, np.ndarray]:
    """TTFT (ms, ascending) of all repeats, and the share of requests (%) at or below each."""
    ttft_ms = np.sort([1e3 * r.ttft_s for run in arm.runs for r in run if r.ttft_s is not None])
    return ttft_ms, 100 * np.arange(1, len(ttft_ms) + 1) / max(1, len(ttft_ms))


def _columns(arm: ArmSeries) -> np.ndarray:
    """float64[n, 4] of requests whose hits are known: sent (s), prompt, cached and ideal tokens."""
    rows = [
        (r.sent_s or 0.0, r.server_prompt_tokens or r.prompt_tokens, r.cached_tokens, r.ideal_tokens or 0)
        for run in arm.runs
        for r in run
        if r.cached_tokens is not None
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def _rates(columns: np.ndarray, which: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Hit rate and ideal hit rate (% of prompt tokens) of each bin; `which` is each request's bin."""
    prompt, cached, ideal = (np.bincount(which, columns[:, c], bins) for c in (1, 2, 3))
    with np.errstate(invalid="ignore"):
        return 100 * cached / prompt, 100 * ideal / prompt


def hit_rate_over_time(arm: ArmSeries) -> Lines:
    """Token hit rate by time since the replay's start (s), all repeats together; 'ideal' beside it."""
    columns = _columns(arm)
    if not len(columns):
        return Lines(np.array([]), {})
    edges = np.linspace(0, columns[:, 0].max() + 1e-9, min(TIME_BINS, max(4, len(columns) // 8)) + 1)
    which = np.clip(np.searchsorted(edges, columns[:, 0], side="right") - 1, 0, len(edges) - 2)
    hit, ideal = _rates(columns, which, len(edges) - 1)
    return Lines((edges[:-1] + edges[1:]) / 2, {"hit": hit, "ideal": ideal})


def length_edges(arms: Sequence[ArmSeries]) -> np.ndarray:
    """Bounds (tokens) of prompt lengths with about as many requests in each bin, to two digits."""
    lengths = np.concatenate([_columns(arm)[:, 1] for arm in arms])
    if not len(lengths):
        return np.array([0.0, 1.0])
    inner = [_two_digits(q) for q in np.quantile(lengths, np.linspace(0, 1, LENGTH_BINS + 1)[1:-1])]
    edges = sorted({e for e in inner if lengths.min() < e <= lengths.max()})
    return np.array([0.0, *edges, float(lengths.max()) + 1])


def _two_digits(value: float) -> float:
    digits = 10 ** max(0, int(np.floor(np.log10(max(value, 1)))) - 1)
    return float(round(value / digits) * digits)


def hit_rate_by_length(arm: ArmSeries, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hit rate, ideal hit rate (% of prompt tokens) and number of requests by prompt length."""
    columns = _columns(arm)
    bins = len(edges) - 1
    which = np.clip(np.searchsorted(edges, columns[:, 1], side="right") - 1, 0, bins - 1)
    hit, ideal = _rates(columns, which, bins)
    return hit, ideal, np.bincount(which, minlength=bins)


def contents(arm: ArmSeries) -> tuple[Lines, int | None]:
    """States in the tree by kind over time (s) in the first repeat that was watched, and the pool's slots."""
    for snapshots in arm.snapshots:
        sections = [(s.at_s, s.marconi) for s in snapshots if s.marconi and "stats" in s.marconi]
        if len(sections) > 1:
            kinds = sorted({kind for _, section in sections for kind in section["stats"]["states"]})
            y = {k: np.array([s["stats"]["states"].get(k, 0) for _, s in sections], float) for k in kinds}
            return Lines(np.array([at for at, _ in sections]), y), sections[-1][1]["slots"]["pool"]
        gauges = [(s.at_s, _metric(s, STOCK_STATES)) for s in snapshots]
        gauges = [(at, value) for at, value in gauges if value is not None]
        if len(gauges) > 1:
            x, values = (np.array(column, float) for column in zip(*gauges, strict=True))
            return Lines(x, {"any kind": values}), None
    return Lines(np.array([]), {}), None


def evictions(arm: ArmSeries) -> Lines:
    """States evicted a second, by "kind, reason", in the first repeat that was watched; x is each bin's middle."""
    for snapshots in arm.snapshots:
        sections = [(s.at_s, s.marconi["stats"]) for s in snapshots if s.marconi and "stats" in s.marconi]
        if len(sections) < 2:
            continue
        at = np.array([at_s for at_s, _ in sections])
        counted = [
            {f"{row['kind']}, {row['reason']}": row["states"] for row in stats["evictions"]}
            for _, stats in sections
        ]
        names = sorted(set().union(*counted))
        edges = np.linspace(at[0], at[-1], min(TIME_BINS, len(at) - 1) + 1)
        if edges[-1] <= edges[0]:
            continue
        y = {}
        for name in names:
            total = np.array([counts.get(name, 0) for counts in counted], float)
            y[name] = np.diff(np.interp(edges, at, total)) / np.diff(edges)
        return Lines((edges[:-1] + edges[1:]) / 2, {name: v for name, v in y.items() if v.any()})
    return Lines(np.array([]), {})


def _metric(snapshot: ServerSnapshot, name: str) -> float | None:
    """A metric's sum over its label sets; None where the server doesn't export it."""
    found = [v for key, v in snapshot.metrics.items() if re.split(r"[{ ]", key, maxsplit=1)[0] == name]
    return sum(found) if found else None
