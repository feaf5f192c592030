"""What people see of a demo: a progress bar while it runs, tables at its end."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from marconi_ext.arms import Arm
from marconi_ext.demo import ArmResult, Watcher, answers_differing
from marconi_ext.measure import Figures
from marconi_ext.progress import ReplayProgress

WIDTH = 100


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
        console.print(figures_table(name, rows))
    if len(names) != 1:
        console.print(figures_table("total", [(r.arm.name, r.total()) for r in results]))
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
