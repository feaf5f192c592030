"""Reuse at a prefix's second appearance, and the extra states that it costs.

A prompt is a second appearance where its match ends inside an edge: exactly one earlier request went that way, none
has parted there yet, so a rule that saves at known branch points has nothing there. What lies between the last node
above and the match's end is the newly shared part. Pools are ample, requests come one at a time, in trace order;
hits are those of the simulator, which `marconi verify` finds equal to the engine's for rules that it follows.

    python bench/second_appearance.py --traces FOLDER [--limit 2000] [--json FILE]
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from records import records_of, write

from marconi_ext.output import check_writable
from marconi_ext.policies.registry import parse_policy
from marconi_ext.profiles import load_profile
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.cell import Options, run_cell
from marconi_ext.simulator.radix_tree import RadixTree
from marconi_ext.simulator.workload import load_workload
from marconi_ext.traces import Request, read_trace

TRACES = {"bbh_fewshot": "bbh_fewshot", "tau_bench": "tau_bench"}
POLICIES = {"stock's grid": "sglang", "the paper's rule": "judicious+lru", "ours": "gittins"}
SHARED_AT_LEAST = 256  # tokens; below a known branch, two questions alike agree on a hundred by chance
AMPLE_SLOTS = 1_000_000


@dataclass(frozen=True)
class Appearance:
    """One second appearance. above_tokens, match_tokens: where the newly shared part begins and ends."""

    request: int
    above_tokens: int
    match_tokens: int

    def reused(self, hit_tokens: int) -> float:
        """Share of the newly shared part that a hit covers."""
        covered = min(hit_tokens, self.match_tokens) - self.above_tokens
        return max(covered, 0) / (self.match_tokens - self.above_tokens)


def second_appearances(requests: list[Request]) -> list[Appearance]:
    """Those of a trace, by an unlimited tree."""
    tree, found = RadixTree(), []
    for number, request in enumerate(requests):
        look = tree.lookup(request.input_ids[:-1])
        above = look.path[-1].depth_tokens if look.path else 0
        if look.partial is not None and look.diverges and look.kv_tokens - above >= SHARED_AT_LEAST:
            found.append(Appearance(number, above, look.kv_tokens))
        tree.insert(np.concatenate([request.input_ids, request.output_ids[:-1]]), number)
    return found


@dataclass(frozen=True)
class Row:
    """prompts, tokens, whole: shares (%) of the appearances that reuse some of the newly shared part, of its
    tokens, and of those that reuse at least 90 % of it; states: saved a request; hit_rate: % of all prompt tokens
    """

    trace: str
    rule: str
    appearances: int
    prompts: float
    whole: float
    tokens: float
    states: float
    hit_rate: float


def measure(trace: str, requests: list[Request]) -> list[Row]:
    workload, appearances = load_workload(trace, 0, requests), second_appearances(requests)
    rows, profile = [], load_profile("nemotron-h-8b")
    for rule, policy in POLICIES.items():
        options = Options(per_request=True)
        cell = run_cell(workload, parse_policy(policy), Capacity(slots=AMPLE_SLOTS), profile, options)
        reused = np.array([one.reused(cell["hits"][one.request]) for one in appearances])
        lengths = np.array([one.match_tokens - one.above_tokens for one in appearances])
        rows.append(
            Row(
                trace,
                rule,
                len(appearances),
                100 * float((reused > 0).mean()),
                100 * float((reused >= 0.9).mean()),
                100 * float((reused * lengths).sum() / lengths.sum()),
                cell["evictions"]["saves"] / len(requests),
                100 * cell["token_hit_rate"],
            )
        )
    return rows


def main(
    traces: Annotated[Path, typer.Option(help="Folder with the real traces.")],
    limit: Annotated[int, typer.Option(min=2, help="Requests of each trace.")] = 2_000,
    json: Annotated[Path | None, typer.Option(metavar="FILE")] = None,
) -> None:
    """Print a Markdown table."""
    check_writable(json)
    print(
        "| trace | rule | second appearances | reuse some, % | 90 %, % | tokens, % | states a request | hit rate |"
    )
    print("|---" * 8 + "|")
    rows = []
    for trace, path in TRACES.items():
        for row in measure(trace, list(islice(read_trace(traces / path), limit))):
            rows.append(asdict(row))
            numbers = " | ".join(f"{x:.1f}" for x in (row.prompts, row.whole, row.tokens))
            print(
                f"| {trace} | {row.rule} | {row.appearances} | {numbers} | {row.states:.2f} | {row.hit_rate:.1f} |",
                flush=True,
            )
    if json:
        write(records_of(rows, bench="second_appearance", case=("trace",), provider="rule"), json)


if __name__ == "__main__":
    typer.run(main)
