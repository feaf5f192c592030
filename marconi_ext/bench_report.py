"""Runs a comparison and says what came of it: tables, JSON, exit code."""

from pathlib import Path

from marconi_ext.bench_driver import BenchOptions, results_folders, run_bench
from marconi_ext.bench_view import hardware_text, print_comparison
from marconi_ext.comparison import Comparison, compare
from marconi_ext.errors import CheckFailedError
from marconi_ext.output import write_json
from marconi_ext.progress import ReplayProgress
from marconi_ext.provenance import provenance


def bench_and_print(options: BenchOptions, json: Path | None = None) -> list[Comparison]:
    """Run everything. What was measured before a failure or Ctrl-C is shown and written all the same.

    Raises CheckFailedError where requests were lost, and what run_bench raises.
    """
    about = provenance(options.seed)
    error: str | None = "interrupted"
    found: list[Comparison] = []
    try:
        with ReplayProgress() as progress:
            run_bench(options, progress)
        error = None
    except CheckFailedError as reason:
        error = str(reason)
        raise
    finally:
        names = [arm.name for arm in options.arms]
        found = [compare(folder, names, options.seed) for folder in results_folders(options).values()]
        for comparison in found:
            if comparison.arms:
                print_comparison(comparison, hardware_text(about))
        print(f"results: {options.folder}")
        if json:
            comparisons = [comparison.as_json() for comparison in found]
            write_json(json, {"comparisons": comparisons, "error": error, "provenance": about})
    lost = sum(arm.failed for comparison in found for arm in comparison.arms)
    if lost:
        raise CheckFailedError(f"{lost} requests weren't answered: see the column `failed`")
    return found
