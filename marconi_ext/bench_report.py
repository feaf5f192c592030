"""Runs a comparison and says what came of it: tables, JSON, exit code."""

from pathlib import Path

from marconi_ext.bench_driver import BenchOptions, results_folders, run_bench
from marconi_ext.bench_view import hardware_text, print_comparison
from marconi_ext.comparison import Comparison, compare
from marconi_ext.errors import CheckFailedError
from marconi_ext.outcome import INTERRUPTED
from marconi_ext.output import tables, write_json
from marconi_ext.progress import ReplayProgress
from marconi_ext.provenance import provenance
from marconi_ext.replay_view import WIDTH


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
            print_comparison(console, comparison, hardware_text(about))
    console.print(f"results: {options.folder}", markup=False, highlight=False, soft_wrap=True)
    if json:
        comparisons = [comparison.as_json() for comparison in found]
        write_json(json, {"comparisons": comparisons, "error": error, "provenance": about})
    return found
