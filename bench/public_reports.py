"""Public reports about caches of hybrid models, sent to a live server (CPU platform) and to one with its cache off.

Each report's requests are sent twice; every answer is compared, and slots, table, tree and sums are checked after each
pass. tests/engine/test_public_reports.py runs a part of it with smaller numbers; test_chunk_sizes.py has every size of
a prefill's chunks.

    python bench/public_reports.py [--only ample,tight,…] [--json FILE]
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import report_cases as cases
import typer
from records import records_of, write
from report_cases import with_
from rich.console import Console
from server_pair import Pair, Report, cache_off, pair, twice

from marconi_ext.errors import CheckFailedError
from marconi_ext.models.toy_model import ToyModel, write_model
from marconi_ext.output import check_writable

VOCABULARY = 4_096
AMPLE = {"max_total_tokens": 100_000, "max_mamba_cache_size": 2_000, "max_running_requests": 8}


@dataclass(frozen=True)
class Group:
    """Reports that one server can be asked."""

    options: Mapping[str, Any]
    reports: tuple[Report, ...]


def groups(here: Path, other: Path) -> dict[str, Group]:
    """here, other: the model that is served, and one of its shape with other weights"""
    return {
        "ample": Group(
            {**AMPLE, "chunked_prefill_size": 65},
            (
                with_(cases.aborted_prefills, rounds=200),
                cases.short_extends,
                cases.boundary_lengths,
                cases.dropped_generation_prompts,
                cases.isolated_keys,
                cases.several_samples,
                cases.logprobs_of_cached_tokens,
                cases.ends_of_answers,
                cases.paused_with_waiting_requests,
                with_(cases.weights_replaced, here=str(here), other=str(other)),
            ),
        ),
        "tight": Group(
            {"max_running_requests": 1, "max_mamba_cache_size": 4, "max_total_tokens": 20_000},
            (
                with_(cases.one_slot_more_than_sessions, turns=40, sessions=2, most_below=0),
                cases.three_slots_and_a_branch,
                with_(cases.one_slot_more_than_sessions, turns=40, sessions=2),
            ),
        ),
        "crowded": Group(
            {
                "max_running_requests": 8,
                "max_mamba_cache_size": 60,
                "max_total_tokens": 30_000,
                "enable_priority_scheduling": True,
            },
            (
                with_(cases.preempted_by_priority, requests=12),
                with_(cases.salted_one_offs, requests=1_000),
                with_(cases.documents_between_turns, documents=32),
            ),
        ),
        "page-16": Group(
            {**AMPLE, "page_size": 16, "chunked_prefill_size": 64},
            (
                cases.short_extends,
                cases.boundary_lengths,
                cases.dropped_generation_prompts,
                cases.isolated_keys,
                with_(cases.aborted_prefills, rounds=40),
            ),
        ),
        "host": Group(
            {
                "max_running_requests": 4,
                "max_mamba_cache_size": 60,
                "max_total_tokens": 20_000,
                "enable_hierarchical_cache": True,
            },
            (with_(cases.churned_host_tier, prompts=81), with_(cases.aborted_prefills, rounds=10)),
        ),
    }


def outcome(both: Pair, report: Report, seed: int) -> dict[str, Any]:
    """What became of a report: `said`, or `failed` with the reason."""
    began, before = time.monotonic(), both.compared
    found: dict[str, Any] = {"report": report.__name__}
    try:
        found["said"] = twice(both, report, seed)
    except CheckFailedError as error:
        found["failed"] = str(error)
    return found | {"compared": both.compared - before, "seconds": round(time.monotonic() - began, 1)}


def main(
    only: Annotated[str, typer.Option(metavar="GROUP,…", help="Which servers to start.")] = "",
    reports: Annotated[str, typer.Option(metavar="NAME,…", help="Which reports to send.")] = "",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json: Annotated[Path | None, typer.Option(metavar="FILE")] = None,
) -> None:
    """Exit code 1 if a report doesn't hold."""
    check_writable(json)
    rows: list[dict[str, Any]] = []
    console = Console()
    with tempfile.TemporaryDirectory(prefix="marconi-reports-") as place, ExitStack() as stack:
        here = write_model(Path(place) / "model", ToyModel(vocab=VOCABULARY))
        other = write_model(Path(place) / "other", ToyModel(vocab=VOCABULARY, seed=1))
        known = groups(here, other)
        chosen = only.split(",") if only else list(known)
        if unknown := set(chosen) - set(known):
            raise typer.BadParameter(
                f"{', '.join(unknown)}; there are {', '.join(known)}", param_hint="--only"
            )
        without = stack.enter_context(cache_off(here))  # one for all groups, which send many requests alike
        for name in chosen:
            group = known[name]
            with pair(here, without, **group.options) as both:
                for report in group.reports:
                    if reports and report.__name__ not in reports.split(","):
                        continue
                    rows.append({"server": name, **outcome(both, report, seed)})
                    console.print(rows[-1], highlight=False, soft_wrap=True)
    if json:
        told = [{**row, "holds": "failed" not in row} for row in rows]
        write(records_of(told, bench="public_reports", case=("server",), provider="report", seed=seed), json)
    if failed := [row for row in rows if "failed" in row]:
        raise SystemExit(f"{len(failed)} of {len(rows)} reports don't hold")


if __name__ == "__main__":
    typer.run(main)
