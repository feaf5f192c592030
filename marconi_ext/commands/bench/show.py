"""Runs a comparison and shows what came of it: tables of arms and of their differences, JSON, exit code."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from marconi_ext.commands.bench.run import BenchOptions, results_folders, run_bench
from marconi_ext.commands.replay.show import WIDTH
from marconi_ext.errors import CheckFailedError
from marconi_ext.output import print_table, tables, write_json
from marconi_ext.replay.outcome import INTERRUPTED
from marconi_ext.replay.progress import ReplayProgress
from marconi_ext.results.comparison import ArmFigures, Comparison, Difference, compare
from marconi_ext.results.provenance import provenance

SHOWN = {
    "hit_rate": "hit rate, points",
    "state_limited_loss": "loss, points",
    "prefilled_tokens": "prefilled, ×",
    "ttft_mean_s": "TTFT mean, ×",
    "ttft_p50_s": "TTFT P50, ×",
    "ttft_p95_s": "TTFT P95, ×",
}


def bench_and_print(options: BenchOptions, json: Path | None = None) -> list[Comparison]:
    """Run everything. What was measured before a failure or Ctrl-C is shown and written all the same.

    Raises CheckFailedError where requests were lost, and what run_bench raises.
    """
    about = provenance(options.seed)
    try:
        with ReplayProgress() as progress:
            run_bench(options, progress)
    except BaseException as reason:
        _show(options, json, about, str(reason) if isinstance(reason, Exception) else INTERRUPTED)
        raise
    found = _show(options, json, about)
    lost = sum(arm.failed for comparison in found for arm in comparison.arms)
    if lost:
        raise CheckFailedError(f"{lost} requests weren't answered: see the column `failed`")
    return found


def _show(
    options: BenchOptions, json: Path | None, about: dict, error: str | None = None
) -> list[Comparison]:
    """Tables and JSON of what is on disk, which is nothing where the run failed at once."""
    names = [arm.name for arm in options.arms]
    folders = [folder for folder in results_folders(options).values() if folder.started]
    found = [compare(folder, names, options.seed) for folder in folders]
    console = tables(json, WIDTH)
    for comparison in found:
        if comparison.arms:
            print_comparison(console, comparison, hardware_text(about), options.side_by_side)
    console.print(f"results: {options.folder}", markup=False, highlight=False, soft_wrap=True)
    if json:
        comparisons = [comparison.as_json() for comparison in found]
        write_json(json, {"comparisons": comparisons, "error": error, "provenance": about})
    return found


def print_comparison(
    out: Console, comparison: Comparison, hardware: str, side_by_side: bool | None = None
) -> None:
    """The two tables of one traffic, and what keeps them from a verdict. side_by_side: None where it isn't known."""
    print_table(out, arms_table(comparison, hardware))
    if comparison.differences:
        print_table(out, differences_table(comparison))
        unit = f"{comparison.n} {comparison.drawn}"
        narrow = " (too few sessions: too narrow)" if comparison.drawn == "requests" else ""
        out.print(
            f"In brackets: 95 % bootstrap interval over {unit}{narrow} and the repeats, both drawn with replacement; "
            "then lowest – highest of the repeats. ?: no verdict.",
            style="dim",
            highlight=False,
        )
        for line in advice(comparison, side_by_side):
            out.print(line, highlight=False, markup=False)
    for arm in comparison.arms:
        if arm.warm_tokens:
            out.print(
                f"{arm.name}: {arm.warm_tokens:,} tokens were cached before its runs began", highlight=False
            )
    for arm in comparison.arms[1:]:
        if arm.answers_differing:
            out.print(f"{arm.name}: {arm.answers_differing} answers differ from {comparison.baseline}'s")


def arms_table(comparison: Comparison, hardware: str) -> Table:
    repeats = max((arm.repeats for arm in comparison.arms), default=0)
    table = _table(f"{comparison.title} ({repeats} repeats; {hardware})")
    table.add_column("arm", no_wrap=True)
    causes = sorted({cause for arm in comparison.arms for cause, n in arm.loss_tokens.items() if n})
    headings = ["hit %\nideal", "loss %", "first\ndiv. %", "avoid-\nable %", *(_cause(c) for c in causes)]
    headings += [
        "TTFT ms\nP5",
        "\nP50",
        "\nP95",
        "\nP99",
        "requests\na second",
        "states\nheld",
        "evic-\ntions",
    ]
    failures = any(arm.failed for arm in comparison.arms)
    for heading in headings + (["failed"] if failures else []):
        table.add_column(heading, justify="right")
    for arm in comparison.arms:
        cells = [f"{_number(arm.hit_rate)}\n{arm.ideal_hit_rate:.1f}", _number(arm.state_limited_loss, 2)]
        cells += [_number(arm.first_divergence, 2), _number(arm.avoidable, 2)]
        cells += [_lost(arm, cause) for cause in causes]
        cells += [f"{1e3 * t:,.1f}" for t in (arm.ttft_p5_s, arm.ttft_p50_s, arm.ttft_p95_s, arm.ttft_p99_s)]
        cells += [f"{arm.requests_per_s:,.2f}", _number(arm.states_held, 0), _number(arm.evictions, 0)]
        if failures:
            cells.append(f"{arm.failed:,}")
        table.add_row(arm.name, *cells)
    return table


def differences_table(comparison: Comparison) -> Table:
    table = _table(f"against {comparison.baseline}")
    table.add_column("arm", no_wrap=True)
    for heading in SHOWN.values():
        table.add_column(heading, justify="right")
    for arm in comparison.arms[1:]:
        found = {d.figure: d for d in comparison.differences if d.arm == arm.name}
        table.add_row(arm.name, *(difference_text(found[figure]) for figure in SHOWN if figure in found))
    return table


def difference_text(difference: Difference) -> str:
    """`+3.10 [2.00, 4.20]` and the repeats below."""
    form = "{:+.2f}" if difference.kind == "difference" else "{:.3f}"
    low, high = difference.repeats
    text = form.format(difference.value)
    if difference.low is not None:
        text += f" [{form.format(difference.low)}, {form.format(difference.high)}]"
    if difference.verdict in ("noisy", "one-repeat"):
        text += " ?"
    return f"{text}\n({form.format(low)} – {form.format(high)})"


def advice(comparison: Comparison, side_by_side: bool | None = None) -> list[str]:
    """Lines on differences that allow no verdict: why, and what to do."""
    found = []
    for difference in comparison.differences:
        if difference.figure not in SHOWN or difference.verdict not in ("noisy", "one-repeat"):
            continue
        what = f"No verdict on {SHOWN[difference.figure].split(',')[0]} of {difference.arm}: "
        if difference.verdict == "one-repeat":
            found.append(what + "one repeat doesn't tell what the machine adds. Use --repeat 3 or more.")
            continue
        form = "{:.2f} ×" if difference.kind == "ratio" else "{:.2f} points"
        own, value = form.format(difference.baseline_spread), form.format(difference.value)
        fix = "a quieter machine, --repeat 5 or more"
        if not side_by_side:
            fix += ", and servers side by side (--side-by-side), so that what the machine does hits all arms"
        found.append(
            f"{what}{comparison.baseline}'s own repeats differ by {own}, more than the effect of {value}. Use {fix}."
        )
    return found


def hardware_text(provenance: dict) -> str:
    """One short name for the machine: its GPUs, or its processor."""
    hardware = provenance.get("hardware", {})
    if hardware.get("gpus"):
        return hardware["gpus"][0]
    return f"{hardware.get('cpu', 'unknown CPU')}, {hardware.get('cores', '?')} cores"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _cause(cause: str) -> str:
    first, *rest = cause.split("_")
    return "\n".join([first, " ".join(rest) + " %" if rest else "%"])


def _lost(arm: ArmFigures, cause: str) -> str:
    """The server's own count of a cause of loss, in % of prompt tokens."""
    if not arm.loss_tokens:
        return "–"
    return f"{100 * arm.loss_tokens.get(cause, 0) / max(1, arm.prompt_tokens):.2f}"
