"""The sweeps behind the paper's figures 7, 8, 10, 11, 12a, 12b and 13: rows of plain values, kept as CSV.

Synthetic traffic by default, small enough for minutes on a laptop; a real trace when one is given. The paper's
traffic, cache sizes and models are larger, so shapes are to be compared, not heights. `PAPER` holds what the
paper says in words; values it only draws aren't guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from marconi_ext.policies.registry import parse_policy
from marconi_ext.profiles import ModelProfile, paper, paper_7b
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.cell import Options
from marconi_ext.simulator.sweep import run_cells
from marconi_ext.simulator.workload import Workload, load_workload
from marconi_ext.traces import synthetic
from marconi_ext.traces.synthetic import GENERATORS

ARTIFACT = {"vLLM+": "artifact-vllm", "SGLang+": "artifact-lru", "Marconi": "artifact-marconi"}
CORRECTED = {"vLLM+": "vllm+", "SGLang+": "sglang+", "Marconi": "marconi"}
CONTENTION = ("state_evictions", "refusals", "nodes")  # counts of a cell; the last is the paper's simulator's
OWN = ("gittins",)  # beside the paper's three
TRAFFIC = {"lmsys": (1, 2, 4), "sharegpt": (2, 4, 8), "swe-agent": (4, 8, 16)}  # cache sizes (GB)
CONTENTION_GB = (2, 4, 8, 12, 16, 24)
ARRIVAL_SESSIONS = 60  # of figure 13
MODEL_REQUESTS = 300  # of figures 12a and 12b: vLLM+ offers a state every 32 tokens, which takes its time
BINS = (0, 1_000, 2_000, 4_000, 8_000, 16_000, 10**9)

# From the paper's text (arXiv 2411.19379v3, sections 5.2 to 5.4), looked up there.
PAPER: dict[str, Any] = {
    "7": {"lmsys": 4.5, "sharegpt": 7.3, "swe-agent": 34.4},  # mean hit rate over vLLM+'s
    "8": {"lmsys": 45.6, "sharegpt": 19.0, "swe-agent": 219.7},  # P95 gain over SGLang+ (%)
    "10": {"below_7k": -3.0, "above_7k": 25.5},  # at worst and at best, against SGLang+
    "11": {60: 24.3, 80: 51.5, 100: 68.3, 120: 30.0, 140: 10.0},  # GB -> gain over SGLang+ (%)
    "12a": {"1:2": "13.5 %", "1:4": "66.6 %", "1:8": "2.6×"},  # gain over vLLM+, as said
    "12b": {16: "5.7×", 128: "35.4×"},
    "13": {0.5: 48.7, 2.0: 43.0},  # sessions a second -> token hit rate (%)
}


@dataclass(frozen=True)
class Scope:
    """What figures are drawn from. `traces`: name -> loader of a seed's workload.

    own: policies beside the paper's three, by the names of `marconi simulate`
    sessions: of each traffic; None: as many as usual
    shares: what caches are cut down to, as less traffic fills less; by name, 1 where it isn't there
    """

    traces: dict[str, Callable[[int], Workload]]
    sizes_gb: dict[str, tuple[float, ...]]
    seeds: int
    processes: int
    advance: Callable[[str], None] = lambda title: None
    own: tuple[str, ...] = OWN
    sessions: int | None = None
    shares: Mapping[str, float] = field(default_factory=dict)

    def policies(self, paper: dict[str, str]) -> dict[str, str]:
        """Title -> name of all that are drawn."""
        return paper | {name: name for name in self.own}

    def scaled(self, name: str, sizes_gb: tuple[float, ...]) -> tuple[float, ...]:
        """Cache sizes for this traffic, to three digits."""
        return tuple(float(f"{size * self.shares.get(name, 1.0):.3g}") for size in sizes_gb)


def synthetic_scope(
    seeds: int,
    processes: int,
    sessions: int | None,
    advance: Callable[[str], None] = lambda title: None,
    own: tuple[str, ...] = OWN,
) -> Scope:
    """The three kinds of traffic of the paper, seeded; with fewer sessions than usual, and caches to match."""

    def loader(name: str) -> Callable[[int], Workload]:
        return lambda seed: load_workload(name, seed, synthetic(name, seed=seed, sessions=sessions))

    traces = {name: loader(name) for name in TRAFFIC}
    shares = {} if sessions is None else {name: share(traces[name](0), sessions) for name in TRAFFIC}
    scope = Scope(traces, {}, seeds, processes, advance, own, sessions, shares)
    return replace(scope, sizes_gb={name: scope.scaled(name, sizes) for name, sizes in TRAFFIC.items()})


def share(workload: Workload, sessions: int) -> float:
    """What part of their usual sizes caches have for so many sessions: their part of the usual ones, but never less
    than one of the longest sequences takes."""
    usual: int = GENERATORS[workload.name][0].sessions  # type: ignore[attr-defined]
    profile, longest = paper_7b(), int(workload.prompt_tokens.max())
    least_gb = (longest * profile.kv_bytes_per_token + 4 * profile.state_bytes) / 1e9
    return min(1.0, max(sessions / usual, least_gb / TRAFFIC[workload.name][0]))


def sweep(
    scope: Scope,
    workload: Workload,
    policies: dict[str, str],
    sizes_gb: tuple[float, ...],
    profile: ModelProfile,
    **labels: object,
) -> Iterator[dict]:
    """Cells of one workload as rows; `hits` stays in them for figure 10."""
    jobs = [
        (parse_policy(name), Capacity(bytes=int(gb * 1e9))) for gb in sizes_gb for name in policies.values()
    ]
    found: list[dict] = []
    run_cells(
        workload, jobs, profile, Options(per_request=True), processes=scope.processes, done=found.append
    )
    titles = {name: title for title, name in policies.items()}
    for cell in found:
        yield {
            **labels,
            "trace": workload.name,
            "seed": workload.seed,
            "policy": titles[cell["policy"]],
            "capacity_gb": cell["capacity_bytes"] / 1e9,
            "contended": sum(count for name, count in cell["evictions"].items() if name in CONTENTION),
            "token_hit_rate": cell["token_hit_rate"],
            "flops_saved_fraction": cell["flops_saved_fraction"],
            "hits": cell["hits"],
        }


def base_rows(scope: Scope) -> tuple[list[dict], list[dict]]:
    """One sweep for figures 7, 8 and 10: rows of cells, and of hit rates by prompt length."""
    cells, lengths = [], []
    for name, load in scope.traces.items():
        for seed in range(scope.seeds):
            scope.advance(f"figures 7, 8, 10: {name}, seed {seed}")
            workload = load(seed)
            for row in sweep(scope, workload, scope.policies(ARTIFACT), scope.sizes_gb[name], paper_7b()):
                hits = np.array(row.pop("hits"))
                cells.append(row)
                lengths += by_length(row, workload.prompt_tokens, hits)
    return cells, lengths


def by_length(row: dict, prompts: np.ndarray, hits: np.ndarray) -> list[dict]:
    """Token hit rate of one cell in bins of prompt length."""
    found = []
    for low, high in pairwise(BINS):
        inside = (prompts >= low) & (prompts < high)
        if inside.any():
            rate = float(hits[inside].sum() / prompts[inside].sum())
            found.append({**row, "from_tokens": low, "to_tokens": high, "token_hit_rate": rate})
    return found


def gains(cells: list[dict], over: str) -> list[dict]:
    """Relative gain in token hit rate (%) of each policy over another one in the same cell."""
    keys = ("trace", "seed", "capacity_gb")
    base = {tuple(c[k] for k in keys): c["token_hit_rate"] for c in cells if c["policy"] == over}
    found = []
    for cell in cells:
        reference = base[tuple(cell[k] for k in keys)]
        if cell["policy"] != over and reference > 0:
            gain = 100 * (cell["token_hit_rate"] / reference - 1)
            found.append({**{k: cell[k] for k in keys}, "policy": cell["policy"], "gain_percent": gain})
    return found


def contention_rows(scope: Scope) -> list[dict]:
    """Figure 11: one agent trace, cache sizes from starved to ample."""
    name = list(scope.traces)[-1]
    scope.advance(f"figure 11: {name}")
    sizes = scope.scaled(name, CONTENTION_GB) if name in TRAFFIC else scope.sizes_gb[name]
    return _without_hits(sweep(scope, scope.traces[name](0), scope.policies(ARTIFACT), sizes, paper_7b()))


def composition_rows(scope: Scope) -> list[dict]:
    """Figure 12a: 28 mixers of which 1 in 3, 5 and 9 is attention."""
    return _model_rows(scope, "figure 12a", "ratio", {"1:2": (9, 19), "1:4": (6, 22), "1:8": (3, 25)})


def state_dim_rows(scope: Scope) -> list[dict]:
    """Figure 12b: state sizes N at the paper's 4 attention and 24 Mamba layers."""
    return _model_rows(scope, "figure 12b", "state_dim", {n: (4, 24, n) for n in (16, 32, 64, 128)})


def arrival_rows(scope: Scope) -> list[dict]:
    """Figure 13: agent sessions that start more often, and that answer faster."""
    rows = []
    for sessions_per_s in (0.25, 0.5, 1.0):
        for response_s in (5.0, 10.0):
            scope.advance(f"figure 13: {sessions_per_s} sessions/s, {response_s} s")
            sizes = {"sessions_per_s": sessions_per_s, "response_s": response_s}
            asked = scope.sessions or ARRIVAL_SESSIONS
            workload = load_workload("swe-agent", 0, synthetic("swe-agent", seed=0, sessions=asked, **sizes))
            policies, size = scope.policies(ARTIFACT), scope.scaled("swe-agent", (8.0,))
            rows += _without_hits(sweep(scope, workload, policies, size, paper_7b(), **sizes))
    return rows


def idle(rows: list[dict]) -> bool:
    """Whether no cache of a figure had to evict or to refuse anything, so that its policies can't differ by it."""
    return bool(rows) and not any(row.get("contended", 1) for row in rows)


def paper_profile(attention: int, mamba: int, state_dim: int = paper.N) -> ModelProfile:
    """The paper's formulas with other numbers of layers, or another state size."""
    d = paper.D
    linear = mamba * (12 * d**2 + 16 * d * state_dim + 10 * d) + attention * 8 * d**2
    linear += paper.MLP_LAYERS * 16 * d**2
    state = mamba * (d * state_dim * 2 + (2 * d + 2 * state_dim) * 4 * 2)
    return ModelProfile("paper", linear, attention * 4 * d, state, attention * 4 * d)


def _model_rows(scope: Scope, title: str, label: str, models: dict) -> list[dict]:
    name = list(scope.traces)[-1]
    requests = scope.traces[name](0).requests[:MODEL_REQUESTS]
    workload = load_workload(name, 0, requests)
    rows = []
    for value, layers in models.items():
        scope.advance(f"{title}: {label} {value}")
        size = scope.sizes_gb[name][len(scope.sizes_gb[name]) // 2]
        rows += _without_hits(
            sweep(
                scope, workload, scope.policies(CORRECTED), (size,), paper_profile(*layers), **{label: value}
            )
        )
    return rows


def _without_hits(rows: Iterator[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "hits"} for row in rows]
