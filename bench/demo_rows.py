"""The rows of `marconi demo` without an engine: real caches and pools, drawn answers, one workload after another.

Hits don't depend on what is answered, so these are the demo's figures in minutes of one core. Stock keeps decode states
at its default interval, and at the chunk, which is the arm `stock-track`.

    python bench/demo_rows.py [--workloads agent,few-shot,fork,thinking,samples] [--json FILE]
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import engineless_cache
import typer
from engineless_cache import Driver
from records import records_of, write
from rich.console import Console
from rich.table import Table

from marconi_ext.commands.demo.cli import DEFAULT_WORKLOADS
from marconi_ext.output import check_writable
from marconi_ext.results.ideal import IdealCache, split_loss
from marconi_ext.traces.request import Request
from marconi_ext.traces.script import play
from marconi_ext.traces.synthetic import scripts

VOCABULARY, CHUNK_TOKENS, DEFAULT_INTERVAL = 4_096, 64, 256
ARMS = {
    "stock": ("stock-python", DEFAULT_INTERVAL),
    "stock-track": ("stock-python", CHUNK_TOKENS),
    "marconi": ("marconi", CHUNK_TOKENS),
}


def rows(arm: str, traffic: dict[str, list[Request]]) -> Iterator[dict[str, Any]]:
    """Figures of each workload in turn, on a cache that is flushed in between. Rates in % of prompt tokens."""
    contestant, decode_interval = ARMS[arm]
    longest = max(len(r.input_ids) + len(r.output_ids) for requests in traffic.values() for r in requests)
    driver = Driver(contestant, slots=2_048, tokens=400_000, context_tokens=longest + 64)
    driver._chunk_tokens = decode_interval  # at finish alone: prefills are planned by now
    cache, number = driver.cache, 0
    for name, requests in traffic.items():
        cache.reset()
        cache.req_to_token_pool.clear()
        cache.token_to_kv_pool_allocator.clear()
        ideal, prompt, computed, needed, first, avoidable = IdealCache(), 0, 0, 0, 0, 0
        offers = cache.mamba.runtime.counts["offers"] if arm == "marconi" else 0
        for request in requests:
            reusable, number = ideal.serve(request), number + 1
            driver.serve(
                number, array("q", request.input_ids.tolist()), array("q", request.output_ids.tolist())
            )
            loss = split_loss(reusable, driver.hit_tokens)
            first += loss.first_divergence_tokens
            avoidable += loss.avoidable_tokens
            prompt += len(request.input_ids)
            computed += len(request.input_ids) - driver.hit_tokens
            needed += len(request.input_ids) - reusable.ideal_tokens
        if arm == "marconi":
            offers = cache.mamba.runtime.counts["offers"] - offers
        yield {
            "workload": name,
            "arm": arm,
            "loss": 100 * (first + avoidable) / prompt,
            "avoidable": 100 * avoidable / prompt,
            "prefill_ratio": computed / needed,
            "states_offered": offers / len(requests),
        }


def main(
    workloads: Annotated[str, typer.Option()] = DEFAULT_WORKLOADS,
    seed: Annotated[int, typer.Option()] = 0,
    json: Annotated[Path | None, typer.Option(metavar="FILE|-")] = None,
) -> None:
    """Print loss in %, and tokens prefilled as a multiple of the ideal's."""
    check_writable(json)
    engineless_cache.publish_settings(CHUNK_TOKENS)
    traffic = {
        name: list(play(scripts(name, seed=seed, vocabulary=VOCABULARY), seed, VOCABULARY))
        for name in workloads.split(",")
    }
    found = {arm: list(rows(arm, traffic)) for arm in ARMS}
    table = Table("workload", *ARMS, "states offered a request")
    for place, name in enumerate(traffic):
        cells = [
            f"{found[arm][place]['loss']:.2f} ({found[arm][place]['prefill_ratio']:.2f} ×)" for arm in ARMS
        ]
        table.add_row(name, *cells, f"{found['marconi'][place]['states_offered']:.2f}")
    Console(width=100).print(table)
    if json:
        made = [row for arm in ARMS for row in found[arm]]
        write(records_of(made, bench="demo_rows", case=("workload",), provider="arm", seed=seed), json)


if __name__ == "__main__":
    typer.run(main)
