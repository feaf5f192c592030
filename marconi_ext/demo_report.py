"""Runs a demo and says what came of it: tables, JSON, exit code."""

from pathlib import Path

from marconi_ext.demo import ArmResult, DemoOptions, as_json, run_demo
from marconi_ext.demo_view import WIDTH, ProgressWatcher, print_tables
from marconi_ext.errors import CheckFailedError
from marconi_ext.outcome import INTERRUPTED
from marconi_ext.output import tables, write_json
from marconi_ext.provenance import provenance


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
