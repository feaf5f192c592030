"""Public reports about caches of hybrid models, sent to a live server (CPU platform) and to one with its cache off.

Each report's requests are sent twice; every answer is compared, and slots, table, tree and sums are checked after each
pass. tests/engine/test_public_reports.py runs a part of it with smaller numbers.

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
from report_cases import with_
from rich.console import Console
from server_pair import CacheOff, Pair, Report, cache_off, pair, twice
from small_adapter import SERVER_OPTIONS, write_adapter

from marconi_ext.errors import CheckFailedError
from marconi_ext.models.toy_model import ToyModel, write_model
from marconi_ext.output import check_writable, write_json
from marconi_ext.results.provenance import provenance

VOCABULARY = 4_096
AMPLE = {"max_total_tokens": 100_000, "max_mamba_cache_size": 2_000, "max_running_requests": 8}


@dataclass(frozen=True)
class Group:
    """Reports that one server can be asked."""

    options: Mapping[str, Any]
    reports: tuple[Report, ...]

    @property
    def takes_adapters(self) -> bool:
        """Whether the server, and so the one to compare with, takes LoRA adapters."""
        return SERVER_OPTIONS.items() <= self.options.items()


@dataclass(frozen=True)
class Folders:
    """here, other: the model that is served, and one of its shape with other weights; adapters: LoRA, by name"""

    here: Path
    other: Path
    adapters: Mapping[str, Path]

    @classmethod
    def written(cls, folder: Path) -> Folders:
        model = ToyModel(vocab=VOCABULARY)
        return cls(
            write_model(folder / "model", model),
            write_model(folder / "other", ToyModel(vocab=VOCABULARY, seed=1)),
            {name: write_adapter(folder / name, model, seed) for seed, name in enumerate(("one", "two"))},
        )


def groups(folders: Folders) -> dict[str, Group]:
    """By name."""
    weights = {"here": str(folders.here), "other": str(folders.other)}
    found = {
        "ample": Group(
            {**AMPLE, "chunked_prefill_size": 65},
            (
                with_(cases.aborted_prefills, rounds=200),
                cases.short_extends,
                cases.boundary_lengths,
                cases.dropped_generation_prompts,
                cases.several_samples,
                cases.logprobs_of_cached_tokens,
                cases.ends_of_answers,
                cases.paused_with_waiting_requests,
                with_(cases.weights_replaced, **weights),
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
        "adapters": Group(
            {**AMPLE, **SERVER_OPTIONS}, (with_(cases.isolated_keys, adapters=folders.adapters),)
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
    for size in (1, 2, 3, 7, 16, 63):
        found[f"chunks-of-{size}"] = Group(
            {**AMPLE, "chunked_prefill_size": size},
            (cases.short_extends, with_(cases.aborted_prefills, rounds=5)),
        )
    return found


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
        folders = Folders.written(Path(place))
        known = groups(folders)
        chosen = only.split(",") if only else list(known)
        if unknown := set(chosen) - set(known):
            raise typer.BadParameter(
                f"{', '.join(unknown)}; there are {', '.join(known)}", param_hint="--only"
            )
        without: dict[bool, CacheOff] = {}  # one for all groups: they send many requests alike
        for name in chosen:
            group = known[name]
            if group.takes_adapters not in without:
                own = SERVER_OPTIONS if group.takes_adapters else {}
                without[group.takes_adapters] = stack.enter_context(cache_off(folders.here, **own))
            with pair(folders.here, without[group.takes_adapters], **group.options) as both:
                for report in group.reports:
                    if reports and report.__name__ not in reports.split(","):
                        continue
                    rows.append({"server": name, **outcome(both, report, seed)})
                    console.print(rows[-1], highlight=False, soft_wrap=True)
    if json:
        write_json(json, {"reports": rows, "provenance": provenance(seed)})
    if failed := [row for row in rows if "failed" in row]:
        raise SystemExit(f"{len(failed)} of {len(rows)} reports don't hold")


if __name__ == "__main__":
    typer.run(main)
