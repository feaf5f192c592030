"""What the replayer adds to the times that it reports, at a fixed rate against a stand-in server.

The server runs in another process and puts into each answer when it had read the request and when it began
to answer, on the same monotonic clock. So the parts can be told apart:

- **late**: sent − due, of the sending;
- **reading**: the first token as the replayer saw it − the server's writing of it;
- **TTFT excess**: TTFT as reported − the time that the server took: both ways through both HTTP stacks.

A third process does nothing but wake up at the same rate: what the machine itself is late by (**control**).

    python bench/replayer_overhead.py [--rate 200] [--seconds 20] [--json FILE]
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from records import records_of, write
from rich.console import Console
from rich.table import Table

from marconi_ext.output import check_writable
from marconi_ext.replay.client import Answer, GenerateClient, Stream
from marconi_ext.replay.player import play
from marconi_ext.replay.progress import ReplayProgress
from marconi_ext.replay.schedule import RecordedPlan
from marconi_ext.replay.sender import Pacing
from marconi_ext.results.folder import RepeatFolder
from marconi_ext.servers.server import Server, ServerSpec
from marconi_ext.traces.request import Request
from marconi_ext.traces.script import draw_tokens

STUB = (sys.executable, str(Path(__file__).parents[1] / "tests" / "helpers" / "stub_server.py"))
LIMIT_MS = 2.0


class TimedClient(GenerateClient):
    """Keeps what the server says of its own times: rows of sent, received, answered, first token (s)."""

    def __init__(self, url: str) -> None:
        super().__init__(url, timeout_s=30)
        self.rows: list[tuple[float, float, float, float]] = []

    def stream(self, answer_tokens: int) -> Stream:
        inner, rows = super().stream(answer_tokens), self.rows

        class Timed:
            feed, check = inner.feed, inner.check

            def answer(self, sent_s: float, end_s: float) -> Answer:
                answer, meta = inner.answer(sent_s, end_s), inner._meta
                if answer.first_token_s is not None:
                    rows.append((sent_s, meta["received_s"], meta["sent_s"], answer.first_token_s))
                return answer

        return Timed()


async def wake_ups(rate: float, count: int) -> list[float]:
    """By how much (s) a process that has nothing else to do wakes up late."""
    began_s, late_s = time.perf_counter(), []
    for number in range(count):
        due_s = began_s + number / rate
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        late_s.append(time.perf_counter() - due_s)
    return late_s


def control(rate: float, count: int) -> subprocess.Popen:
    command = [sys.executable, __file__, "--rate", str(rate), "--wake-ups", str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def main(
    rate: Annotated[float, typer.Option(help="Requests a second.")] = 200.0,
    seconds: Annotated[float, typer.Option(help="How long.")] = 20.0,
    prompt_tokens: Annotated[int, typer.Option()] = 1_000,
    answer_tokens: Annotated[int, typer.Option()] = 8,
    seed: Annotated[int, typer.Option()] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
    wake_ups_only: Annotated[int, typer.Option("--wake-ups", hidden=True)] = 0,
) -> None:
    """Exit 1 where a request is missed or the replayer adds 2 ms or more at P99."""
    if wake_ups_only:
        sys.stdout.buffer.write(np.array(asyncio.run(wake_ups(rate, wake_ups_only))).tobytes())
        return
    check_writable(json)
    rng = np.random.default_rng(seed)
    count = int(rate * seconds)
    nothing = np.zeros(answer_tokens, dtype=np.int32)
    requests = [
        Request(str(i), 0, i / rate, draw_tokens(rng, prompt_tokens, 4_096), nothing) for i in range(count)
    ]
    environment = {**os.environ, "STUB_NO_CACHE": "1"}
    spec = ServerSpec((), environment, STUB)
    with tempfile.TemporaryDirectory() as folder, Server(spec, Path(folder) / "stub.log") as server:
        server.start(30)
        client, idle = TimedClient(server.url), control(rate, count)
        with ReplayProgress() as progress:
            progress.open_bar(f"{rate:g} requests/s", count)
            played = play(
                RecordedPlan(requests),
                client,
                Pacing(concurrency=4_096, timed=True),
                RepeatFolder(Path(folder) / "results"),
                url=server.url,
                on_record=lambda record, live: progress.record(record, live.open_requests),
            )
        idle_s = np.frombuffer(idle.communicate(timeout=60)[0])
    sent_s, received_s, answered_s, seen_s = np.array(client.rows).T
    parts = {
        "late": [r.late_s for r in played.records if r.late_s is not None],
        "reading": seen_s - answered_s,
        "TTFT excess": (seen_s - sent_s) - (answered_s - received_s),
        "control: wake-ups of an idle process": idle_s,
    }
    rows = {name: quantiles_ms(values) for name, values in parts.items()}
    summary = played.summary
    rows["replayer's loop lag"] = {
        f"p{p}_ms": 1e3 * getattr(summary.loop_lag_s, f"p{p}") for p in (50, 95, 99)
    } | {"max_ms": 1e3 * summary.loop_lag_s.max}
    missed = count - summary.answered
    table = Table(
        "", "P50 ms", "P95 ms", "P99 ms", "max ms", title=f"{summary.requests_per_s:.1f} requests/s"
    )
    for name, row in rows.items():
        table.add_row(name, *(f"{value:.2f}" for value in row.values()))
    Console(width=110).print(table)
    print(f"{summary.answered} of {count} answered, {missed} missed; most open: {summary.most_open}")
    if json is not None:
        told = [{"rate": rate, "part": name, **row} for name, row in rows.items()]
        told.append({"rate": rate, "part": "all", "answered": summary.answered, "missed": missed})
        config = {"seconds": seconds, "prompt_tokens": prompt_tokens}
        made = records_of(
            told, bench="replayer_overhead", case=("rate",), provider="part", seed=seed, config=config
        )
        write(made, json)
    good = not missed and rows["late"]["p99_ms"] < LIMIT_MS and rows["reading"]["p99_ms"] < LIMIT_MS
    raise typer.Exit(0 if good else 1)


def quantiles_ms(seconds) -> dict[str, float]:
    p50, p95, p99, top = 1e3 * np.percentile(np.asarray(seconds), [50, 95, 99, 100])
    return {"p50_ms": float(p50), "p95_ms": float(p95), "p99_ms": float(p99), "max_ms": float(top)}


if __name__ == "__main__":
    typer.run(main)
