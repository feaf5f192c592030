"""Pattern d in tight pools: hit rate over state slots, where the user's next task drops the thoughts of a tool loop.

A quarter of the agents have a task under way at a time, the others wait for the user. A state at the user's message of
a session that waits is worth more than all that its loop has saved since. By the live engine's rules without a server,
the template known.

    python bench/loop_slots.py [--template qwen3.5] [--sessions 24] [--json FILE]
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import engineless_cache
import typer
from records import records_of, write
from rich.console import Console
from rich.table import Table
from thinking_matrix import VOCABULARY, headers

from marconi_ext.output import check_writable
from marconi_ext.policies.currency import Currency
from marconi_ext.policies.messages import MessageHeaders
from marconi_ext.policies.registry import parse_policy
from marconi_ext.simulator.live_rules import LiveRules
from marconi_ext.traces.chat_template import find_template
from marconi_ext.traces.request import Request
from marconi_ext.traces.synthetic import synthetic

POLICIES = ("gittins", "learned+lru")
SLOTS = (8, 12, 18, 24, 48, 10_000)


def hit_rate(requests: list[Request], policy: str, slots: int, known: MessageHeaders) -> tuple[float, float]:
    """Of prompt tokens, in %, and states offered a request."""
    currency = Currency()
    rules = LiveRules(slots, 10**8, *parse_policy(policy).build(currency), currency, headers=known)
    hits = sum(rules.serve(request.input_ids, request.output_ids).hit_tokens for request in requests)
    tokens = sum(len(request.input_ids) for request in requests)
    return 100 * hits / tokens, rules.runtime.counts["offers"] / len(requests)


def main(
    template: Annotated[str, typer.Option()] = "qwen3.5",
    sessions: Annotated[int, typer.Option()] = 24,
    seed: Annotated[int, typer.Option()] = 0,
    json: Annotated[Path | None, typer.Option(metavar="FILE|-")] = None,
) -> None:
    """Print the curve."""
    check_writable(json)
    engineless_cache.publish_settings()
    requests = list(
        synthetic(
            "tool-loops",
            seed=seed,
            sessions=sessions,
            at_once=max(sessions // 4, 1),
            tasks=(4, 4),
            calls=(5, 20),
            template=template,
            vocabulary=VOCABULARY,
        )
    )
    known = headers(find_template(template), "auto")
    table, rows = (
        Table("slots", *POLICIES, "states offered a request", title=f"{template}, {sessions} sessions"),
        [],
    )
    for slots in SLOTS:
        found = {policy: hit_rate(requests, policy, slots, known) for policy in POLICIES}
        rows.append({"slots": slots, **{policy: rate for policy, (rate, _) in found.items()}})
        table.add_row(
            str(slots), *(f"{rate:.1f}" for rate, _ in found.values()), f"{found[POLICIES[0]][1]:.2f}"
        )
    Console(width=100).print(table)
    if json:
        config = {"requests": len(requests), "template": template}
        write(records_of(rows, bench="loop_slots", case=("slots",), seed=seed, config=config), json)


if __name__ == "__main__":
    typer.run(main)
