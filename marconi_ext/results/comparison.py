"""Compares arms: figures of each, and differences to the first with confidence intervals.

**Intervals** are 95 % percentile bootstraps. Sessions are drawn with replacement, the same ones for both arms, and
repeats are drawn with replacement, each arm's own: an interval says how far a figure depends on which sessions the
trace happens to hold, and on what a machine did in one repeat and not in another. It always contains what single
repeats showed. With fewer than MIN_SESSIONS sessions, requests are drawn instead, which ignores that requests of a
session are alike: too narrow, and marked.

**Verdicts**: none is given where the baseline's own repeats differ by more than the effect (`noisy`), nor on times from
a single repeat (`one-repeat`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from marconi_ext.results.folder import ArmInfo, RequestRecord, ResultsFolder, Status, Summary

DRAWS = 1_000
MIN_SESSIONS = 8
TIMED = ("ttft_",)  # figures that a busy machine changes, by their beginning


@dataclass(frozen=True)
class ArmFigures:
    """An arm's figures over all its repeats; rates in % of prompt tokens.

    spread: figure -> (lowest, highest) of the repeats
    warm_tokens: reused, and cached before the runs began: the caches weren't empty
    answers_differing: answers unlike the first arm's, on the same prompt, in the first repeat
    """

    name: str
    repeats: int
    requests: int
    failed: int
    prompt_tokens: int
    hit_rate: float | None
    ideal_hit_rate: float
    state_limited_loss: float | None
    first_divergence: float | None
    avoidable: float | None
    prefilled_tokens: int
    ttft_p5_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    ttft_p99_s: float
    requests_per_s: float
    prompt_tokens_per_s: float
    states_held: int | None
    evictions: int | None
    loss_tokens: dict[str, int]
    spread: dict[str, tuple[float, float]]
    answers_differing: int = 0
    warm_tokens: int = 0


@dataclass(frozen=True)
class Difference:
    """An arm against the first one. value: a difference or a ratio; low, high: its interval or None.

    repeats: lowest and highest of single repeats
    baseline_spread: by how much the baseline's own repeats differ: highest − lowest, or highest / lowest
    verdict: 'higher', 'lower', 'none' (the interval holds no difference), 'noisy' or 'one-repeat'
    """

    arm: str
    figure: str
    kind: str  # "difference" or "ratio"
    value: float
    low: float | None
    high: float | None
    repeats: tuple[float, float]
    baseline_spread: float = 0.0
    verdict: str = "none"


@dataclass(frozen=True)
class Comparison:
    """drawn: what the bootstrap draws, 'sessions' or 'requests'; n: how many of them."""

    title: str
    baseline: str
    arms: list[ArmFigures]
    differences: list[Difference]
    drawn: str
    n: int

    def as_json(self) -> dict:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class _Sample:
    """One arm's answered requests, a row a request and repeat, as arrays; unit: what a draw takes together."""

    unit: np.ndarray
    prompt: np.ndarray
    cached: np.ndarray
    ideal: np.ndarray
    ttft_s: np.ndarray

    def take(self, rows: np.ndarray) -> "_Sample":
        return _Sample(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


# figure -> (kind, its value in a sample)
FIGURES: dict[str, tuple[str, Callable[[_Sample], float]]] = {
    "hit_rate": ("difference", lambda s: 100 * s.cached.sum() / max(1, s.prompt.sum())),
    "state_limited_loss": (
        "difference",
        lambda s: 100 * np.maximum(0, s.ideal - s.cached).sum() / max(1, s.prompt.sum()),
    ),
    "prefilled_tokens": ("ratio", lambda s: float((s.prompt - s.cached).sum())),
    "ttft_mean_s": ("ratio", lambda s: float(s.ttft_s.mean())),
    "ttft_p50_s": ("ratio", lambda s: float(np.percentile(s.ttft_s, 50))),
    "ttft_p95_s": ("ratio", lambda s: float(np.percentile(s.ttft_s, 95))),
}


def compare(folder: ResultsFolder, order: Sequence[str] | None = None, seed: int = 0) -> Comparison:
    """Compare the arms of a results folder with its first one. order: the arms' names, first to last."""
    run = folder.run()
    arms = sorted(run.arms, key=lambda arm: order.index(arm.name) if order else 0)
    records = {arm.name: [list(repeat.requests()) for repeat in folder.repeats(arm)] for arm in arms}
    arms = [arm for arm in arms if records[arm.name]]
    names = [arm.name for arm in arms]
    baseline = names[0] if names else ""
    paired = min((len(records[name]) for name in names), default=0)  # a run cut short may lack repeats
    common = _answered_by_all([repeat for name in names for repeat in records[name][:paired]])
    sessions = {session for session, _ in common}
    drawn = "sessions" if len(sessions) >= MIN_SESSIONS else "requests"
    units = {key: key[0] if drawn == "sessions" else key for key in common}
    numbers = {
        unit: number for number, unit in enumerate(dict.fromkeys(units[key] for key in sorted(common)))
    }
    samples = {
        name: [
            _sample(repeat, {key: numbers[units[key]] for key in common}) for repeat in records[name][:paired]
        ]
        for name in names
    }
    differences = []
    for name in names[1:]:
        differences += _differences(name, samples[baseline], samples[name], len(numbers), seed)
    return Comparison(
        title=run.title,
        baseline=baseline,
        arms=[_figures(arm, folder, records[arm.name], records[baseline]) for arm in arms],
        differences=differences,
        drawn=drawn,
        n=len(numbers),
    )


Key = tuple[str, int]


def _answered_by_all(runs: list[list[RequestRecord]]) -> set[Key]:
    """Requests that every run answered: only those can be paired."""
    answered = [{(r.session_id, r.turn) for r in run if r.status == Status.OK} for run in runs]
    return set.intersection(*answered) if answered else set()


def _sample(run: list[RequestRecord], units: dict[Key, int]) -> _Sample:
    rows = [r for r in run if (r.session_id, r.turn) in units and r.status == Status.OK]
    return _Sample(
        np.array([units[r.session_id, r.turn] for r in rows], dtype=np.int64),
        np.array([r.server_prompt_tokens or r.prompt_tokens for r in rows]),
        np.array([r.cached_tokens or 0 for r in rows]),
        np.array([r.ideal_tokens or 0 for r in rows]),
        np.array([r.ttft_s or 0.0 for r in rows]),
    )


def _differences(
    name: str, base: list[_Sample], other: list[_Sample], units: int, seed: int
) -> list[Difference]:
    if not units:
        return []
    one, two = _joined(base), _joined(other)
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {figure: [] for figure in FIGURES}
    rows_one, rows_two = _rows_by_repeat(base, units), _rows_by_repeat(other, units)
    for _ in range(DRAWS):
        chosen = rng.integers(units, size=units)
        resampled = []
        for sample, rows in ((one, rows_one), (two, rows_two)):
            repeats = rng.integers(len(rows), size=len(rows))
            resampled.append(sample.take(np.concatenate([rows[r][unit] for r in repeats for unit in chosen])))
        for figure, (kind, value) in FIGURES.items():
            drawn[figure].append(_against(kind, value(resampled[0]), value(resampled[1])))
    found = []
    for figure, (kind, value) in FIGURES.items():
        low, high = np.nanpercentile(drawn[figure], [2.5, 97.5])
        single = [_against(kind, value(a), value(b)) for a, b in zip(base, other, strict=True)]
        own = [value(a) for a in base]
        difference = Difference(
            arm=name,
            figure=figure,
            kind=kind,
            value=round(_against(kind, value(one), value(two)), 4),
            low=round(float(min(low, *single)), 4),
            high=round(float(max(high, *single)), 4),
            repeats=(round(min(single), 4), round(max(single), 4)),
            baseline_spread=round(_against(kind, min(own), max(own)), 4),
        )
        found.append(replace(difference, verdict=verdict_of(difference, len(base))))
    return found


def verdict_of(found: Difference, repeats: int) -> str:
    """What may be said of a difference; see the module's text."""
    same = 0.0 if found.kind == "difference" else 1.0
    if found.figure.startswith(TIMED) and repeats < 2:
        return "one-repeat"
    if found.low is None or found.high is None or found.low <= same <= found.high or math.isnan(found.value):
        return "none"
    effect = abs(found.value)
    if found.kind == "ratio":
        effect = max(found.value, 1 / found.value) if found.value else float("inf")
    if found.baseline_spread > effect:
        return "noisy"
    return "higher" if found.value > same else "lower"


def _against(kind: str, base: float, value: float) -> float:
    if kind == "difference":
        return value - base
    return value / base if base else float("nan") if value else 1.0


def _joined(samples: list[_Sample]) -> _Sample:
    return _Sample(
        *(np.concatenate([getattr(s, name) for s in samples]) for name in _Sample.__dataclass_fields__)
    )


def _rows_by_repeat(samples: list[_Sample], units: int) -> list[list[np.ndarray]]:
    """[repeat][unit] -> its rows in all samples joined."""
    found, first = [], 0
    for sample in samples:
        found.append([rows + first for rows in _rows_by_unit(sample, units)])
        first += len(sample.unit)
    return found


def _rows_by_unit(sample: _Sample, units: int) -> list[np.ndarray]:
    by_unit = np.argsort(sample.unit, kind="stable")
    ends = np.searchsorted(sample.unit[by_unit], np.arange(units + 1))
    return [by_unit[ends[unit] : ends[unit + 1]] for unit in range(units)]


def _figures(
    arm: ArmInfo, folder: ResultsFolder, runs: list[list[RequestRecord]], first: list[list[RequestRecord]]
) -> ArmFigures:
    summaries = [repeat.summary() for repeat in folder.repeats(arm)]
    ttft_s = [r.ttft_s for run in runs for r in run if r.status == Status.OK and r.ttft_s is not None]
    p5, p50, p95, p99 = np.percentile(ttft_s, [5, 50, 95, 99]).tolist() if ttft_s else [0.0] * 4
    prompt = sum(s.prompt_tokens for s in summaries)
    seconds = sum(s.duration_s for s in summaries)

    def rate(name: str) -> float | None:
        parts = [(getattr(s, name), s.prompt_tokens) for s in summaries]
        if not prompt or any(part is None for part, _ in parts):
            return None
        return round(sum(part * tokens for part, tokens in parts) / prompt, 4)

    def of_repeats(value: Callable[[Summary], float | None]) -> tuple[float, float] | None:
        values = [v for v in map(value, summaries) if v is not None]
        return (min(values), max(values)) if values else None

    spread = {
        "hit_rate": of_repeats(lambda s: s.hit_rate),
        "ttft_p50_s": of_repeats(lambda s: s.ttft_s.p50 if s.ttft_s else None),
        "ttft_p95_s": of_repeats(lambda s: s.ttft_s.p95 if s.ttft_s else None),
        "requests_per_s": of_repeats(lambda s: s.requests_per_s),
    }
    causes: dict[str, int] = {}
    for summary in summaries:
        for cause, tokens in summary.server_loss_tokens.items():
            causes[cause] = causes.get(cause, 0) + tokens
    known_evictions = [s.evictions for s in summaries if s.evictions is not None]
    return ArmFigures(
        name=arm.name,
        repeats=len(summaries),
        requests=sum(s.answered for s in summaries),
        failed=sum(s.requests - s.answered for s in summaries),
        prompt_tokens=prompt,
        hit_rate=rate("hit_rate"),
        ideal_hit_rate=rate("ideal_hit_rate") or 0.0,
        state_limited_loss=rate("state_limited_loss"),
        first_divergence=rate("first_divergence"),
        avoidable=rate("avoidable"),
        prefilled_tokens=prompt - sum(s.cached_tokens or 0 for s in summaries),
        ttft_p5_s=p5,
        ttft_p50_s=p50,
        ttft_p95_s=p95,
        ttft_p99_s=p99,
        requests_per_s=round(sum(s.answered for s in summaries) / seconds, 3) if seconds else 0.0,
        prompt_tokens_per_s=round(prompt / seconds, 1) if seconds else 0.0,
        states_held=summaries[-1].states_held,
        evictions=round(sum(known_evictions) / len(known_evictions)) if known_evictions else None,
        loss_tokens=causes,
        spread={name: ends for name, ends in spread.items() if ends},
        answers_differing=answers_differing(runs[0], first[0]),
        warm_tokens=sum(s.warm_tokens for s in summaries),
    )


def answers_differing(run: list[RequestRecord], other: list[RequestRecord]) -> int:
    """Requests answered in both whose prompts were equal and whose answers weren't.

    Answers feed later prompts, so only the first difference of a conversation is counted.
    """
    theirs = {(r.session_id, r.turn): r for r in other if r.status == Status.OK}
    differ = 0
    for record in run:
        twin = theirs.get((record.session_id, record.turn))
        if twin and record.status == Status.OK and twin.prompt_digest == record.prompt_digest:
            differ += record.output_digest != twin.output_digest
    return differ
