"""How real traffic cuts prefills: what the default policy saves inside an extend, and what saving it there costs.

Each trace goes through the live engine's rules with ample pools. Of every extend (a prompt's uncached part, at most
8,192 tokens) the plan of `sglang_hooks.recurrence.piece_plan` says how many cuts, steps and forks it takes. Prints a
row a trace, bound on forked tokens and cost of a step, Markdown.

    python bench/extend_cuts.py --traces FOLDER [--requests 300] [--fork-tokens 0,256,1024] [--json FILE]
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from records import records_of, write
from verify_matrix import TRACES

from marconi_ext.output import check_writable
from marconi_ext.policies.currency import Currency
from marconi_ext.policies.registry import parse_policy
from marconi_ext.policies.request_plan import Plan
from marconi_ext.simulator.live_rules import LiveRules
from marconi_ext.simulator.radix_tree import Node
from marconi_ext.traces.read import read_trace
from marconi_ext.traces.rescript import rescript
from marconi_ext.traces.script import Histories, in_order
from sglang_hooks.recurrence.piece_plan import STEP_TOKENS, plan_pieces

SLOTS, TOKENS, CHUNK_TOKENS, VOCABULARY = 20_000, 20_000_000, 8_192, 4_096
MORE_TRACES = {"mt_bench": "mt_bench_101", "mooncake": "mooncake/conversation_trace.jsonl.gz"}


class Recorded(LiveRules):
    """Remembers each extend: (tokens before it, prompt's length, depths of the states that are saved in it)."""

    extends: list[tuple[int, int, list[int]]]

    def _publish(self, plan: Plan, prompt: np.ndarray) -> Node | None:
        depths = [pending.offer.depth_tokens for pending in self._pending]
        self.extends.append((plan.match.hit_tokens, len(prompt), depths))
        return super()._publish(plan, prompt)


@dataclass(frozen=True)
class Row:
    """One trace under one bound. Shares are of extends, added tokens are in % of the extends' own.

    step: share whose last token is a step; step_tokens: what one counts as, 0: without steps
    work: what cuts, steps and forks add to the recurrence, in % of its own, where a cut counts as so many tokens
    """

    trace: str
    fork_tokens: int
    step_tokens: int
    extends: int
    median_tokens: int
    inside: float
    one_token_tail: float
    cut: float
    step: float
    forked_tokens: float
    most_cuts: int
    work: float


def extends_of(path: Path, requests: int, max_prompt_tokens: int) -> list[tuple[int, int, list[int]]]:
    """The extends of a trace's first requests."""
    found = rescript(
        read_trace(path), vocabulary=VOCABULARY, max_prompt_tokens=max_prompt_tokens, wanted=requests
    )
    currency = Currency(state_bytes=64 << 20, kv_bytes_per_token=20_480)
    admission, eviction = parse_policy("ours").build(currency)
    rules = Recorded(SLOTS, TOKENS, admission, eviction, currency)
    rules.extends = []
    histories, rng = Histories(found.scripts), np.random.default_rng(0)
    for script, turn in in_order(found.scripts):
        prompt = np.asarray(histories.prompt(script, turn), np.int32)
        answer = rng.integers(1_000, VOCABULARY, script.turns[turn].answer_tokens).astype(np.int32)
        rules.serve(prompt, answer)
        histories.answered(script, prompt, answer)
    return rules.extends


def row(
    trace: str, extends: list[tuple[int, int, list[int]]], fork_tokens: int, step_tokens: int, cut_tokens: int
) -> Row:
    """Chunked as the engine does it, each chunk planned alone."""
    lengths, inside, tails, cuts, steps, forked = [], 0, 0, [], 0, 0
    for hit, total, depths in extends:
        for start in range(hit, total, CHUNK_TOKENS):
            length = min(CHUNK_TOKENS, total - start)
            offsets = [d - start for d in depths if 0 < d - start <= length]
            rows = [0] * len(offsets)
            plan = plan_pieces(
                [length], rows, offsets, fork_tokens=fork_tokens, step_tokens=step_tokens or None
            )
            inner = [offset for offset in offsets if offset < length]
            lengths.append(length)
            inside += bool(inner)
            tails += inner == [length - 1]
            cuts.append(plan.cuts)
            steps += plan.steps
            forked += plan.forked_tokens
    count = len(lengths)
    return Row(
        trace,
        fork_tokens,
        step_tokens,
        count,
        int(np.median(lengths)),
        100 * inside / count,
        100 * tails / count,
        100 * sum(map(bool, cuts)) / count,
        100 * steps / count,
        100 * forked / sum(lengths),
        max(cuts),
        100 * (forked + cut_tokens * sum(cuts) + step_tokens * steps) / sum(lengths),
    )


def main(
    traces: Annotated[Path, typer.Option(help="Folder with the real traces.")],
    requests: Annotated[int, typer.Option(min=1, help="Of each trace.")] = 300,
    max_prompt_tokens: Annotated[int, typer.Option(min=1)] = 24_000,
    fork_tokens: Annotated[str, typer.Option(help="Bounds to compare, comma-separated.")] = "0,256,1024",
    step_tokens: Annotated[
        str, typer.Option(help="Forked tokens that a step costs, comma-separated; 0: no steps.")
    ] = f"0,{STEP_TOKENS}",
    cut_tokens: Annotated[
        int, typer.Option(help="Forked tokens that cost what a cut costs (cut_or_fork.py).")
    ] = 256,
    json: Annotated[Path | None, typer.Option(metavar="FILE")] = None,
) -> None:
    """Plan every extend of every trace."""
    check_writable(json)
    rows = []
    print(
        "| trace | bound | a step counts | extends | median tokens | with a state inside % | only one token short % |",
        end="",
    )
    print(" cut % | step % | forked tokens % | most cuts | added work % |\n" + "|---" * 12 + "|")
    for name, path in (TRACES | MORE_TRACES).items():
        extends = extends_of(traces / path, requests, max_prompt_tokens)
        bounds = product(map(int, fork_tokens.split(",")), map(int, step_tokens.split(",")))
        for bound, step in bounds:
            one = row(name, extends, bound, step, cut_tokens)
            rows.append(one)
            cells = [one.trace, one.fork_tokens, one.step_tokens, one.extends, one.median_tokens]
            cells += [
                f"{one.inside:.1f}",
                f"{one.one_token_tail:.1f}",
                f"{one.cut:.1f}",
                f"{one.step:.1f}",
                f"{one.forked_tokens:.1f}",
                one.most_cuts,
                f"{one.work:.1f}",
            ]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    if json:
        made = records_of(
            map(asdict, rows), bench="extend_cuts", case=("trace", "step_tokens"), provider="fork_tokens"
        )
        write(made, json)


if __name__ == "__main__":
    typer.run(main)
