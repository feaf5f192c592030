"""Runs a demo and shows what comes of it: a progress bar, tables at its end, JSON, exit code."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from marconi_ext.commands.demo.run import (
    ArmResult,
    DemoOptions,
    Watcher,
    answers_differing,
    as_json,
    run_demo,
)
from marconi_ext.errors import CheckFailedError
from marconi_ext.output import print_table, tables, write_json
from marconi_ext.replay.measure import Figures
from marconi_ext.replay.outcome import INTERRUPTED
from marconi_ext.replay.progress import ReplayProgress
from marconi_ext.results.provenance import provenance
from marconi_ext.servers.arms import Arm

WIDTH = 100


def demo_and_print(options: DemoOptions, json: Path | None = None) -> None:
    """Run everything. What was measured before a failure or Ctrl-C is shown and written all the same.

    Raises CheckFailedError where requests were lost, and what run_demo raises.
    """
    results: list[ArmResult] = []
    try:
        with ProgressWatcher() as watcher:
            for result in run_demo(options, watcher):
                results.append(result)
    except BaseException as reason:
        _show(options, results, json, str(reason) if isinstance(reason, Exception) else INTERRUPTED)
        raise
    _show(options, results, json)
    if any(result.incomplete() for result in results):
        raise CheckFailedError("some requests failed or were never sent: see the column `failed`")


def _show(
    options: DemoOptions, results: list[ArmResult], json: Path | None, error: str | None = None
) -> None:
    if results:
        print_tables(tables(json, WIDTH), results)
    if json:
        write_json(json, as_json(results, provenance(options.seed), error))


class ProgressWatcher(ReplayProgress, Watcher):
    """Shows a demo's bars; use as a context manager."""

    def starting(self, arms: list[Arm]) -> None:
        self.wait("starting " + ", ".join(arm.name for arm in arms))

    def replaying(self, arm: Arm) -> None:
        self.close_bar()
        self.console.print(f"[bold]{arm.name}[/]: {arm.meaning}")

    def workload(self, arm: Arm, name: str, turns: int) -> None:
        self.open_bar(name, turns)

    def finished(self, result: ArmResult) -> None:
        self.close_bar()


def print_tables(console: Console, results: list[ArmResult]) -> None:
    """One table a workload, and one for all of them; a row an arm."""
    names = list(dict.fromkeys(name for result in results for name in result.runs))
    for name in names:
        rows = [(r.arm.name, r.by_workload()[name]) for r in results if name in r.runs]
        print_table(console, figures_table(name, rows))
    if len(names) != 1:
        print_table(console, figures_table("total", [(r.arm.name, r.total()) for r in results]))
    console.print(
        "Ideal: what an unlimited attention-only cache would have reused. Loss: prompt tokens, in %, that it\n"
        "would have reused and this server computed again; first divergence (no state can lie at a branch\n"
        "before a second request takes it) and avoidable. Prefill: tokens computed / computed with the ideal.",
        style="dim",
        highlight=False,
    )
    for result in results[1:]:
        if differing := answers_differing(result, results[0]):
            console.print(f"{result.arm.name}: {differing} answers differ from {results[0].arm.name}'s")


def figures_table(title: str, rows: list[tuple[str, Figures]]) -> Table:
    """The figures of one workload."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("arm", no_wrap=True)
    headings = (
        ("prompt", "tokens"),
        ("cached", "tokens"),
        ("ideal", "tokens"),
        ("loss", "%"),
        ("first", "div. %"),
        ("avoid-", "able %"),
        ("prefill", "× ideal"),
        ("P50", "TTFT ms"),
        ("P95", "TTFT ms"),
    )
    failures = any(figures.failed or figures.unsent for _, figures in rows)
    for first, second in headings + ((("failed", "requests"),) if failures else ()):
        table.add_column(f"{first}\n{second}", justify="right")
    for name, figures in rows:
        cells = [
            f"{figures.prompt_tokens:,}",
            f"{figures.cached_tokens:,}",
            f"{figures.ideal_tokens:,}",
            f"[bold]{figures.state_limited_loss:.2f}[/]",
            f"{figures.first_divergence:.2f}",
            f"{figures.avoidable:.2f}",
            f"{figures.prefill_ratio:.2f}",
            f"{figures.ttft_p50_ms:.1f}",
            f"{figures.ttft_p95_ms:.1f}",
        ]
        if failures:
            cells.append(f"{figures.failed + figures.unsent:,}")
        table.add_row(name, *cells)
    return table
