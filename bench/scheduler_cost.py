"""What a request costs the scheduler: its match, plan, inserts and evictions, beside stock SGLang's two tree cores.

    python bench/scheduler_cost.py [--prompts 1000,4000,16000,64000] [--json FILE]

Agent-like sessions, eight at a time, whose prompts grow over 16 turns from half of the length named to all of it, with
a shared beginning. The same requests go through three caches in one process, request by request, the order rotating;
ratios are taken within a request. Our target is for what a request costs before its prefill is launched: the rest is
done while the GPU works. No model runs. Times are processor time; the garbage collector runs between requests.
All of it is repeated with fresh caches, and the least time of each request or call is taken: the work is the same each
time, what else the machine does is not. P99 is over requests or calls.
"""

from __future__ import annotations

import gc
from array import array
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from engineless_cache import BEFORE_LAUNCH, CONTESTANTS, PHASES, Driver, publish_settings
from paired import paired_ratio
from records import records_of, write
from rich.console import Console
from rich.progress import track
from rich.table import Table

from marconi_ext.output import check_writable

TURNS, SESSIONS, ANSWER_TOKENS = 16, 8, 64
LIMIT = 1.2  # times the Rust core's, before the launch
LIMIT_EVICTION_US = 200.0


def agents(length: int, requests: int, rng: np.random.Generator) -> Iterator[tuple[array, array]]:
    """(prompt, answer): each session's prompt goes on where its last answer ended."""
    shared = draw(rng, length // 4)
    histories = [array("q")] * SESSIONS
    turns = [TURNS] * SESSIONS
    step = max(length // 2 // TURNS - ANSWER_TOKENS, 8)
    for _ in range(requests):
        which = int(rng.integers(SESSIONS))
        if turns[which] == TURNS:
            histories[which], turns[which] = shared + draw(rng, length // 4), 0
        prompt, answer = histories[which] + draw(rng, step), draw(rng, ANSWER_TOKENS)
        histories[which], turns[which] = prompt + answer, turns[which] + 1
        yield prompt, answer


def draw(rng: np.random.Generator, tokens: int) -> array:
    return array("q", rng.integers(0, 100_000, tokens).tobytes())


def requests_cost(length: int, tight: bool, requests: int, repeats: int, seed: int) -> dict[str, Any]:
    """µs by contestant, request and phase, after a first part that fills the pools."""
    publish_settings()
    states, kv = (
        (SESSIONS * 4, SESSIONS * length) if tight else (8 * requests, 2 * requests * length // TURNS)
    )
    sizes = {"slots": states, "tokens": max(kv, 4 * length), "context_tokens": 2 * length + 1_000}
    label = f"{length:,} tokens, {'tight' if tight else 'ample'} pools"
    least: dict[str, np.ndarray] = {}
    for repeat in range(repeats):
        drivers = [Driver(name, **sizes) for name in CONTESTANTS]
        spent: dict[str, list[dict[str, int]]] = {name: [] for name in CONTESTANTS}
        hits = dict.fromkeys(CONTESTANTS, 0)
        script = agents(length, requests, np.random.default_rng(seed))
        for number, (prompt, answer) in enumerate(track(script, label, total=requests, console=stderr())):
            gc.collect(0)
            for turn in range(3):
                driver = drivers[(number + repeat + turn) % 3]
                spent[driver.contestant].append(driver.serve(number, prompt, answer))
                hits[driver.contestant] += driver.hit_tokens
        for name, found in spent.items():
            us = np.array([[one[phase] for phase in PHASES] for one in found[requests // 4 :]]) / 1e3
            least[name] = np.minimum(least.get(name, us), us)
    return {"case": label, "hits": hits, "us": least}


def eviction_cost(
    states: int, calls: int, repeats: int, seed: int, *, alone: bool
) -> dict[str, dict[str, np.ndarray]]:
    """µs of each eviction call by contestant and by what is wanted, in a tree that holds `states`."""
    publish_settings(chunk_tokens=16)
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in CONTESTANTS}
    groups = [(name,) for name in CONTESTANTS] if alone else [CONTESTANTS]
    for wanted, repeat, group in product(("state", "KV"), range(repeats), groups):
        slots, tokens = (states, 100 * states) if wanted == "state" else (2 * states, 24 * states)
        drivers = [Driver(name, slots=slots, tokens=tokens, context_tokens=512) for name in group]
        script = {name: np.random.default_rng(seed) for name in group}
        label = f"{states:,} states, {wanted} wanted"
        for call in track(range(calls), label, console=stderr()):
            for turn in range(len(drivers)):
                driver = drivers[(call + repeat + turn) % len(drivers)]
                rng, timed = script[driver.contestant], driver.evictions[wanted]
                before = len(timed)
                while len(timed) == before:  # at first, until the pool is full
                    gc.collect(0)
                    driver.serve(len(timed), draw(rng, 33), draw(rng, 17))
        for driver in drivers:
            us = np.array(driver.evictions[wanted][:calls]) / 1e3
            of = found[driver.contestant]
            of[wanted] = np.minimum(of.get(wanted, us), us)
    return found


def stderr() -> Console:
    return Console(stderr=True)


def quantiles(values: np.ndarray) -> tuple[float, float]:
    return float(np.percentile(values, 50)), float(np.percentile(values, 99))


def show_case(case: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Print one table; returns it as plain data."""
    us, launch = case["us"], len(BEFORE_LAUNCH)
    parts = {phase: {name: us[name][:, i] for name in CONTESTANTS} for i, phase in enumerate(PHASES)}
    parts["before the launch"] = {name: us[name][:, :launch].sum(axis=1) for name in CONTESTANTS}
    parts["after"] = {name: us[name][:, launch:].sum(axis=1) for name in CONTESTANTS}
    parts["request"] = {name: us[name].sum(axis=1) for name in CONTESTANTS}
    table = Table("µs, P50 / P99", *CONTESTANTS, title=case["case"])
    cells = {part: {name: quantiles(of[name]) for name in CONTESTANTS} for part, of in parts.items()}
    for part, row in cells.items():
        table.add_row(part, *(f"{row[name][0]:.0f} / {row[name][1]:.0f}" for name in CONTESTANTS))
    ratios: dict[str, dict[str, tuple[float, float, float]]] = {}
    for part in ("before the launch", "request"):
        of = parts[part]
        ratios[part] = {name: paired_ratio(of["marconi"], of[name], rng) for name in CONTESTANTS[:2]}
        texts = [f"{r:.2f} ({low:.2f} – {high:.2f})" for r, low, high in ratios[part].values()]
        table.add_row(f"marconi / this, {part}", *texts, "")
    table.add_row("tokens reused", *(f"{case['hits'][name]:,}" for name in CONTESTANTS))
    Console().print(table)
    return {"case": case["case"], "hit_tokens": case["hits"], "us_p50_p99": cells, "marconi_over": ratios}


def show_evictions(found: dict[int, dict[str, dict[str, np.ndarray]]]) -> list[dict[str, Any]]:
    table = Table("µs a call, P50 / P99", *CONTESTANTS, title="Eviction")
    rows = []
    for states, by_name in found.items():
        for wanted in ("state", "KV"):
            row = {name: quantiles(by_name[name][wanted]) for name in CONTESTANTS}
            cells = (f"{row[name][0]:.0f} / {row[name][1]:.0f}" for name in CONTESTANTS)
            table.add_row(f"{states:,} states, {wanted} wanted", *cells)
            rows.append({"states": states, "wanted": wanted, "us_p50_p99": row})
    Console().print(table)
    return rows


def rows_of(cases: list[dict[str, Any]], evictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a case and contestant."""
    rows: list[dict[str, Any]] = []
    for case in cases:
        for name in CONTESTANTS:
            row = {"case": case["case"], "contestant": name, "hit_tokens": case["hit_tokens"][name]}
            for phase, by_name in case["us_p50_p99"].items():
                row |= dict(zip((f"{phase}_p50_us", f"{phase}_p99_us"), by_name[name], strict=True))
            for part, over in case["marconi_over"].items():
                if name in over:
                    names = (f"{part}: marconi_over{end}" for end in ("", "_low", "_high"))
                    row |= dict(zip(names, over[name], strict=True))
            rows.append(row)
    for one in evictions:
        case = f"{one['states']} states, {one['wanted']} wanted"
        for name, (p50, p99) in one["us_p50_p99"].items():
            rows.append({"case": case, "contestant": name, "evict_p50_us": p50, "evict_p99_us": p99})
    return rows


def numbers(text: str) -> Sequence[int]:
    return [int(part) for part in text.split(",") if part]


def main(
    prompts: Annotated[str, typer.Option(help="Prompt lengths in tokens.")] = "1000,4000,16000,64000",
    requests: Annotated[int, typer.Option(min=64, help="Requests a case.")] = 400,
    states: Annotated[str, typer.Option(help="States held while evictions are timed.")] = "1000,10000",
    calls: Annotated[int, typer.Option(min=10, help="Eviction calls timed a case.")] = 1_000,
    repeats: Annotated[int, typer.Option(min=1, help="Of all of it; the least time counts.")] = 3,
    alone: Annotated[
        bool, typer.Option("--alone", help="Time evictions of one contestant at a time, with warm caches.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures as JSON.")] = None,
) -> None:
    """Exit code 0 where a request costs at most 1.2 times the Rust core's before its launch, and evictions at most
    200 µs at P99."""
    check_writable(json)
    gc.disable()  # so that it runs where it is called, between requests
    rng = np.random.default_rng(seed)
    cases = [
        show_case(requests_cost(length, tight, requests, repeats, seed), rng)
        for length in numbers(prompts)
        for tight in (False, True)
    ]
    evictions = show_evictions(
        {count: eviction_cost(count, calls, repeats, seed, alone=alone) for count in numbers(states)}
    )
    if json is not None:
        told = rows_of(cases, evictions)
        write(
            records_of(told, bench="scheduler_cost", case=("case",), provider="contestant", seed=seed), json
        )
    dear = [case for case in cases if case["marconi_over"]["before the launch"]["stock-rust"][0] > LIMIT]
    slow = [row for row in evictions if row["us_p50_p99"]["marconi"][1] > LIMIT_EVICTION_US]
    raise typer.Exit(1 if dear or slow else 0)


if __name__ == "__main__":
    typer.run(main)
