"""Stock SGLang, its own answer to the problem, and the extension on real and synthetic traffic, live.

Plays slices of real traces (a folder with mini_swe_agent, tau_bench, bbh_fewshot and lmcache_agent_trace)
and the synthetic mixes against each arm's server, with an ample and then with a tight state pool, and writes
one results folder a traffic, and the tables of docs/results-replay.md as Markdown.

    python bench/live_comparison.py --traces FOLDER --out RESULTS [--repeats 3] [--only agent,tau_bench]
"""

from __future__ import annotations

import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from marconi_ext.commands.bench.run import BenchOptions, run_bench
from marconi_ext.models.toy_model import ToyModel, write_model
from marconi_ext.replay.progress import ReplayProgress
from marconi_ext.replay.selection import Selection
from marconi_ext.replay.sender import Pacing
from marconi_ext.replay.traffic import Traffic, load_traffic
from marconi_ext.results.comparison import ArmFigures, Comparison, compare
from marconi_ext.results.folder import find_results
from marconi_ext.results.run_folder import new_folder
from marconi_ext.servers.arm_server import AMPLE_STATE_SLOTS
from marconi_ext.servers.arms import choose_arms
from marconi_ext.servers.engine_options import ModelFacts

ARMS = "stock,stock:max-states=3,marconi"
REQUESTS = 56
ANSWER_TOKENS = 8  # the cache sees every token; decoding only takes time here


@dataclass(frozen=True)
class Slice:
    """A part of a trace that a small model can take. source: inside the folder of traces, or synthetic:NAME."""

    name: str
    source: str
    sessions: int
    scale: float | None = None
    max_prompt_tokens: int = 4_000


SLICES = (
    Slice("mini_swe_agent", "mini_swe_agent/sessions.jsonl.gz", 8, 0.1),
    Slice("tau_bench", "tau_bench", 8),
    Slice("bbh_fewshot", "bbh_fewshot", REQUESTS),
    Slice("magagent", "lmcache_agent_trace/magagent", 8, 0.5),
    Slice("agent", "synthetic:agent", 8),
    Slice("few-shot", "synthetic:few-shot", REQUESTS),
    Slice("fork", "synthetic:fork", 4),
    Slice("sharegpt", "synthetic:sharegpt", 24),
    Slice("tree-search", "synthetic:tree-search", 4),
)


def load(one: Slice, traces: Path, vocabulary: int) -> Traffic:
    source = one.source if one.source.startswith("synthetic:") else str(traces / one.source)
    selection = Selection(
        sessions=one.sessions,
        scale=one.scale,
        max_prompt_tokens=one.max_prompt_tokens,
        limit=REQUESTS,
        max_output_tokens=ANSWER_TOKENS,
    )
    return load_traffic(source, selection, history="own", vocabulary=vocabulary)


def hits_table(pool: str, comparisons: list[Comparison]) -> list[str]:
    """Markdown: hit rate and loss, an arm a column."""
    names = [arm.name for arm in comparisons[0].arms]
    lines = [
        f"| {pool} pool | repeats | ideal | " + " | ".join(names) + " |",
        "|---" * (len(names) + 3) + "|",
    ]
    for found in comparisons:
        repeats = min(arm.repeats for arm in found.arms)
        cells = [
            f"{arm.hit_rate:.1f} ({arm.state_limited_loss:.2f}: {arm.avoidable:.2f})" for arm in found.arms
        ]
        ideal = found.arms[0].ideal_hit_rate
        lines.append(f"| {found.title} | {repeats} | {ideal:.1f} | " + " | ".join(cells) + " |")
    return lines


def ratios_table(pool: str, comparisons: list[Comparison]) -> list[str]:
    """Markdown: ratios to the first arm with their intervals, an arm a row."""
    lines = [
        f"| {pool} pool | arm | prefilled | TTFT mean | TTFT P50 | TTFT P95 | P50 of the repeats |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in comparisons:
        for arm in found.arms[1:]:
            of = {d.figure: d for d in found.differences if d.arm == arm.name}
            if not of:
                continue
            cells = [
                f"{of[f].value:.2f} [{of[f].low:.2f}, {of[f].high:.2f}]"
                for f in ("prefilled_tokens", "ttft_mean_s", "ttft_p50_s", "ttft_p95_s")
            ]
            low, high = of["ttft_p50_s"].repeats
            lines.append(f"| {found.title} | {arm.name} | {' | '.join(cells)} | {low:.2f} – {high:.2f} |")
    return lines


def notes(comparisons: list[Comparison]) -> list[str]:
    """Whatever makes a row less than it seems: answers that differ, requests that failed."""

    def told(title: str, arm: ArmFigures) -> list[str]:
        found = []
        if arm.answers_differing:
            found.append(f"{title}, {arm.name}: {arm.answers_differing} answers differ from the first arm's")
        if arm.failed:
            found.append(f"{title}, {arm.name}: {arm.failed} requests weren't answered")
        return found

    return [line for found in comparisons for arm in found.arms for line in told(found.title, arm)]


def main(
    traces: Annotated[Path, typer.Option(help="Folder with the real traces.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    arms: Annotated[str, typer.Option(help="As in `marconi bench`.")] = ARMS,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    tight_slots: Annotated[int, typer.Option(help="State slots of the tight pool.")] = 24,
    pools: Annotated[str, typer.Option(help="ample, tight, or both.")] = "ample,tight",
    only: Annotated[str, typer.Option(help="Names of slices, comma-separated.")] = "",
    hidden: Annotated[int, typer.Option(help="Width of the model.")] = 256,
    pattern: Annotated[str, typer.Option(help="Layers: M Mamba2, * attention, - MLP.")] = "M-M*M-M-M-",
    seed: Annotated[int, typer.Option()] = 0,
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="Of results that are there, of a run that was stopped too.")
    ] = False,
) -> None:
    """Measure, print the tables as Markdown and write them to OUT/tables.md."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that servers are stopped too
    if tables_only:
        return write_tables(out, arms.split(","), seed)
    new_folder(out, "live")
    slices = [one for one in SLICES if not only or one.name in only.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", ToyModel(hidden=hidden, pattern=pattern, seed=seed))
        facts = ModelFacts(model)
        traffics = [load(one, traces, facts.vocabulary) for one in slices]
        for pool in pools.split(","):
            options = BenchOptions(
                model_path=model,
                cpu=True,
                state_slots=tight_slots if pool == "tight" else AMPLE_STATE_SLOTS,
                seed=seed,
                extra_flags=("--enable-metrics", "--sleep-on-idle", "--skip-tokenizer-init"),
                arms=choose_arms(arms, facts.chunk_tokens),
                traffics=traffics,
                pacing=Pacing(concurrency=1),
                folder=out / pool,
                repeats=repeats,
                side_by_side=True,
            )
            with ReplayProgress() as progress:
                run_bench(options, progress)
    write_tables(out, arms.split(","), seed)


def write_tables(out: Path, names: list[str], seed: int) -> None:
    """Tables of what is there: traffics that every arm has played at least once."""
    lines: list[str] = []
    for pool in ("ample", "tight"):
        folders = find_results(out / pool) if (out / pool).exists() else []
        found = [compare(results, names, seed) for results in folders]
        found = [comparison for comparison in found if len(comparison.arms) == len(names)]
        if found:
            lines += [*hits_table(pool, found), "", *ratios_table(pool, found), "", *notes(found), ""]
    (out / "tables.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
