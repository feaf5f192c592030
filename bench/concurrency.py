"""Requests running at once on a pool of state slots, throughput and TTFT under load: stock SGLang and the extension.

All servers are up at once and are asked in turn, round by round, the first of a round changing; ratios are taken
within rounds. A round is a closed loop of more clients than either server runs requests: sessions of two turns over
one system prompt. `--max-running-requests` isn't given: each server takes what it finds right for its slots.

    python bench/concurrency.py [--slots 64] [--rounds 4] [--json FILE]
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from records import records_of, write
from rich.console import Console
from rich.table import Table

from marconi_ext.models.toy_model import ToyModel, write_model
from marconi_ext.output import check_writable
from marconi_ext.replay.client import GenerateClient
from marconi_ext.replay.measure import Figures, measure
from marconi_ext.replay.sender import replay
from marconi_ext.servers.arm_server import ArmServer, ServerOptions, started_together
from marconi_ext.servers.arms import choose_arms
from marconi_ext.traces.script import Script, Turn, draw_tokens

RUNNING = re.compile(r"#running-req: (\d+)")


def sessions(seed: int, number: int, prompt_tokens: int, answer_tokens: int, vocabulary: int) -> list[Script]:
    """Two turns each, all sessions' first turns first: a prompt of so many tokens, and 100 tokens more."""
    rng = np.random.default_rng([seed, 61])
    system = draw_tokens(rng, 100, vocabulary)
    found = []
    for name in range(number):
        first = np.concatenate([system, draw_tokens(rng, prompt_tokens - 100, vocabulary)])
        turns = (
            Turn(first, answer_tokens, name),
            Turn(draw_tokens(rng, 100, vocabulary), answer_tokens, name + number),
        )
        found.append(Script(f"session/{name}", turns))
    return found


async def play(server: ArmServer, scripts: list[Script], clients: int) -> Figures:
    async with GenerateClient(server.server.url, timeout_s=300) as client:
        return measure([await replay(client, scripts, clients, lambda _: None)], server.page_size)


def main(
    slots: Annotated[int, typer.Option(help="State slots.")] = 64,
    prompt_tokens: Annotated[int, typer.Option(help="Of a session's first turn.")] = 500,
    answer_tokens: Annotated[int, typer.Option()] = 64,
    clients: Annotated[int, typer.Option(help="Requests open at a time.")] = 48,
    number: Annotated[int, typer.Option("--sessions", help="A round.")] = 48,
    rounds: Annotated[int, typer.Option(min=1)] = 4,
    arms: Annotated[str, typer.Option(help="As in `marconi bench`, stock first.")] = "stock,marconi",
    seed: Annotated[int, typer.Option()] = 0,
    json: Annotated[Path | None, typer.Option(metavar="FILE|-")] = None,
) -> None:
    """Measure and print a table; ratios are medians of the rounds'."""
    check_writable(json)
    with tempfile.TemporaryDirectory() as folder:
        model = ToyModel(chunk_size=64, vocab=4_096)
        options = ServerOptions(
            write_model(Path(folder) / "model", model),
            cpu=True,
            state_slots=slots,
            max_total_tokens=100_000,
            extra_flags=(
                "--sleep-on-idle",
                "--skip-tokenizer-init",
                "--skip-server-warmup",
                "--stream-interval",
                "16",
            ),
        )
        chosen = choose_arms(arms, 64)
        logs = {arm: Path(folder) / f"{place}.log" for place, arm in enumerate(chosen)}
        figures: dict[str, list[Figures]] = {arm.name: [] for arm in chosen}
        with started_together(options, logs) as servers:
            for turn in range(rounds):
                scripts = sessions(seed + turn, number, prompt_tokens, answer_tokens, model.vocab)
                for place in np.roll(range(len(chosen)), turn).tolist():
                    servers[place].server.flush_cache()
                    figures[chosen[place].name].append(asyncio.run(play(servers[place], scripts, clients)))
            ran = {
                arm.name: max(map(int, RUNNING.findall(server.server.log_text())), default=0)
                for arm, server in zip(chosen, servers, strict=True)
            }
    show(figures, ran)
    if json:
        rows = [
            {"server": name, "round": place, "running_requests": ran[name], **one.as_json()}
            for name, found in figures.items()
            for place, one in enumerate(found)
        ]
        write(records_of(rows, bench="concurrency", case=("round",), provider="server", seed=seed), json)


def show(figures: dict[str, list[Figures]], ran: dict[str, int]) -> None:
    table = Table(
        "arm",
        "running at once",
        "answer tokens/s",
        "TTFT P50",
        "TTFT P95",
        "hit rate",
        "throughput ×",
        "TTFT P50 ×",
    )
    first = next(iter(figures.values()))
    for name, found in figures.items():
        rates = [one.output_tokens / one.duration_s for one in found]
        ratio = np.median(
            [rate * one.duration_s / one.output_tokens for rate, one in zip(rates, first, strict=True)]
        )
        waits = np.median(
            [one.ttft_p50_ms / base.ttft_p50_ms for one, base in zip(found, first, strict=True)]
        )
        table.add_row(
            name,
            str(ran[name]),
            f"{np.median(rates):,.0f}",
            f"{np.median([one.ttft_p50_ms for one in found]):,.0f} ms",
            f"{np.median([one.ttft_p95_ms for one in found]):,.0f} ms",
            f"{np.median([one.hit_rate for one in found]):.1f} %",
            f"{ratio:.2f}",
            f"{waits:.2f}",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(main)
