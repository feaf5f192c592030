"""What the extension costs where nothing can be reused: TTFT and throughput on prompts that share no token.

Both servers are up at once and are asked in turn, pair by pair, the first of a pair alternating; ratios are
taken within pairs, so a drifting machine cancels out. One idle server sleeps while the other works. Beside the
times on the clock stand the servers' processor times, which other work on the machine blurs far less.

    python bench/no_reuse_overhead.py [--pairs 60] [--family gdn] [--json FILE]
    python bench/no_reuse_overhead.py --model-path FOLDER --server-flags "--load-format dummy"   # on a GPU
"""

from __future__ import annotations

import asyncio
import os
import shlex
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from paired import paired_ratio
from records import records_of, write
from rich.console import Console
from rich.progress import track
from rich.table import Table

from marconi_ext.commands.server_setup import small_model
from marconi_ext.models.families import write_small_model
from marconi_ext.output import check_writable
from marconi_ext.replay.client import GenerateClient
from marconi_ext.servers.arms import choose_arms, require_status
from marconi_ext.servers.engine_options import CPU_OPTIONS, ModelFacts, environment, to_flags
from marconi_ext.servers.server import Server, ServerSpec
from marconi_ext.traces.script import draw_tokens

LIMIT = 1.03


def start(model: Path, flags: tuple[str, ...], logs: Path, name: str, *, cpu: bool) -> Server:
    """A server. On the CPU its pools are ample, so that nothing is evicted; two servers share a GPU's memory."""
    options = {"model_path": model, "sleep_on_idle": True, "skip_tokenizer_init": True}
    if cpu:
        options |= {**CPU_OPTIONS, "max_total_tokens": 500_000, "max_mamba_cache_size": 4_000}
    server = Server(ServerSpec((*to_flags(options), *flags), environment(cpu=cpu)), logs / name)
    server.launch()
    return server


@dataclass(frozen=True)
class Arm:
    """One of the two servers, and a client of it."""

    server: Server
    client: GenerateClient


async def ttft_pairs(
    arms: list[Arm], prompts: list[np.ndarray], answer_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """float64[pairs, 2] twice - seconds to the first token, and processor seconds of the whole request:
    stock, extension."""
    seconds, cpu_s = np.empty((len(prompts), 2)), np.empty((len(prompts), 2))
    for number, prompt in enumerate(track(prompts, "TTFT", console=Console(stderr=True))):
        for arm in (0, 1) if number % 2 else (1, 0):
            before_s = arms[arm].server.cpu_s()
            answer = await arms[arm].client.generate(prompt, answer_tokens)
            assert answer.status == "ok" and answer.cached_tokens == 0, answer
            seconds[number, arm] = answer.ttft_s
            cpu_s[number, arm] = arms[arm].server.cpu_s() - before_s
    return seconds, cpu_s


async def throughput_pairs(
    arms: list[Arm], rounds: list[list[np.ndarray]], answer_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """float64[rounds, 2] twice - prompt and output tokens a second with a round's prompts all open at once,
    and processor seconds of the round: stock, extension."""
    rates, cpu_s = np.empty((len(rounds), 2)), np.empty((len(rounds), 2))
    for number, prompts in enumerate(track(rounds, "throughput", console=Console(stderr=True))):
        tokens = sum(len(prompt) + answer_tokens for prompt in prompts)
        for arm in (0, 1) if number % 2 else (1, 0):
            before_s, began = arms[arm].server.cpu_s(), time.perf_counter()
            answers = await asyncio.gather(*(arms[arm].client.generate(p, answer_tokens) for p in prompts))
            rates[number, arm] = tokens / (time.perf_counter() - began)
            cpu_s[number, arm] = arms[arm].server.cpu_s() - before_s
            assert all(answer.status == "ok" for answer in answers)
    return rates, cpu_s


def row(pairs: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """What the table and the JSON say of float64[pairs, 2]: stock, extension."""
    ratio, low, high = paired_ratio(pairs[:, 1], pairs[:, 0], rng)
    return {
        "stock_p50": float(np.median(pairs[:, 0])),
        "marconi_p50": float(np.median(pairs[:, 1])),
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "n": len(pairs),
    }


def main(
    pairs: Annotated[int, typer.Option(help="Prompts for TTFT.")] = 60,
    rounds: Annotated[int, typer.Option(help="Rounds of 8 prompts at once, for throughput.")] = 20,
    prompt_tokens: Annotated[int, typer.Option(help="Length of a prompt.")] = 1_500,
    answer_tokens: Annotated[int, typer.Option(help="Length of an answer.")] = 16,
    hidden: Annotated[int, typer.Option(help="Width of the model.")] = 256,
    family: Annotated[str, typer.Option(help="The small model's recurrence.")] = "mamba2",
    pattern: Annotated[str, typer.Option(help="Mamba2's layers: M Mamba2, * attention, - MLP.")] = "M-M*M-M-",
    model_path: Annotated[Path | None, typer.Option(help="A model for the GPU, in place of these.")] = None,
    server_flags: Annotated[str, typer.Option(help="More SGLang flags for both servers.")] = "",
    seed: Annotated[int, typer.Option()] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Compare stock SGLang with the extension, on the CPU platform if not told a model; exit 1 beyond 3 %."""
    check_writable(json)
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"hidden": hidden} | ({"pattern": pattern} if family == "mamba2" else {})
        model = model_path or write_small_model(Path(folder) / "model", small_model(family, **sizes))
        facts = ModelFacts(model)
        draw = [draw_tokens(rng, prompt_tokens, facts.vocabulary) for _ in range(pairs + 8 * rounds + 4)]
        servers = []
        try:
            arms = choose_arms("stock,marconi", facts.chunk_tokens)
            for arm in arms:
                flags = (*shlex.split(server_flags), *arm.flags)
                servers.append(start(model, flags, Path(folder), arm.name, cpu=model_path is None))

            for arm, server in zip(arms, servers, strict=True):
                server.wait_until_healthy()
                require_status(arm, server.log_text())

            async def run() -> tuple[np.ndarray, ...]:
                async with GenerateClient(servers[0].url) as stock, GenerateClient(servers[1].url) as marconi:
                    asked = [Arm(servers[0], stock), Arm(servers[1], marconi)]
                    await ttft_pairs(asked, draw[:4], answer_tokens)  # warm up
                    one_by_one = await ttft_pairs(asked, draw[4 : 4 + pairs], answer_tokens)
                    rest = draw[4 + pairs :]
                    batches = [rest[i : i + 8] for i in range(0, len(rest), 8)]
                    return *one_by_one, *await throughput_pairs(asked, batches, answer_tokens)

            ttft, ttft_cpu, rates, rates_cpu = asyncio.run(run())
        finally:
            for server in servers:
                server.stop()
    rows = {
        "TTFT (s)": row(ttft, rng),
        "processor time a request (s)": row(ttft_cpu, rng),
        "throughput (tokens/s)": row(rates, rng),
        "processor time a round (s)": row(rates_cpu, rng),
    }
    table = Table("", "stock P50", "marconi P50", "marconi / stock", "95 % interval", "pairs")
    for name, found in rows.items():
        table.add_row(
            name,
            f"{found['stock_p50']:.4g}",
            f"{found['marconi_p50']:.4g}",
            f"{found['ratio']:.3f}",
            f"{found['ratio_low']:.3f} – {found['ratio_high']:.3f}",
            str(found["n"]),
        )
    Console().print(table)
    if json is not None:
        made = [{"measure": name, "compared": "marconi / stock", **found} for name, found in rows.items()]
        write(
            records_of(
                made,
                bench="no_reuse_overhead",
                case=("measure",),
                provider="compared",
                seed=seed,
                config={"family": None if model_path else family, "load_average": os.getloadavg()[1]},
            ),
            json,
        )
    within = rows["TTFT (s)"]["ratio"] <= LIMIT and rows["throughput (tokens/s)"]["ratio"] >= 1 / LIMIT
    raise typer.Exit(0 if within else 1)


if __name__ == "__main__":
    typer.run(main)
