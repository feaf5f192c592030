"""A long run that is rough on the cache: aborts, dropped connections, flushes, pauses, forced retractions, tight pools.

Short prompts that share, fork and come back; a sample of the answers is compared with a server whose prefix cache is
off. Fails on a leaked slot, a wrong answer, a wrong sum, a difference between the policy's table and the tree, a dead
server, an error in its log, or memory that keeps growing.

    python bench/soak.py [--requests 20000] [--family gdn] [--ranks 2 --slow-rank] [--policy marconi --kill-tuner]
                         [--tenants] [--server-flags "--pp-size 2"] [--json FILE]

`--server-flags "--speculative-algorithm …"` takes a model whose drafts are right now and then.
"""

from __future__ import annotations

import asyncio
import shlex
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import aiohttp
import numpy as np
import typer
from records import records_of, write
from rich.console import Console
from rich.progress import Progress
from soak_tenants import Tenants, flags
from soak_troubles import kill_tuners, memory_mb, pause, slow_down_rank

from marconi_ext.commands.server_setup import small_model
from marconi_ext.errors import CheckFailedError
from marconi_ext.models.families import SmallModel, write_small_model
from marconi_ext.output import check_writable
from marconi_ext.servers.engine_options import CPU_OPTIONS, environment, to_flags
from marconi_ext.servers.server import Server, ServerSpec

VOCABULARY = 4_096
LOG_ERRORS = ("Scheduler hit an exception", "memory leak", "checkpoints dropped", "consensus")
CHECKS = {
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
    "SGLANG_TEST_RETRACT": "1",
    "SGLANG_TEST_RETRACT_INTERVAL": "200",
}
LONG_ANSWERS, LONG_ANSWER_TOKENS, TRIMMED = 0.15, 40, 2
FLUSH_EVERY = 2_000
SETTLE_SHARE = 0.3  # of the run, after which memory must not grow by more than GROWTH
GROWTH = 1.10
WALK_S = 20.0


class Traffic:
    """Prompts of 20 to 400 tokens: new, continued, cut short or repeated, drawn from a seed; some go on from a long
    answer without its end, whichever came first."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._known: list[np.ndarray] = []

    def next(self) -> tuple[np.ndarray, int, str]:
        """(prompt, answer tokens, fate: "whole", "abort" or "drop")"""
        rng = self._rng
        if not self._known or rng.random() < 0.05:
            prompt = rng.integers(1_000, VOCABULARY, rng.integers(20, 200))
        else:
            base = self._known[int(len(self._known) * rng.random() ** 0.5)]
            cut = len(base) if rng.random() < 0.6 else int(rng.integers(1, len(base) + 1))
            prompt = np.concatenate([base[:cut], rng.integers(1_000, VOCABULARY, rng.integers(0, 40))])
        prompt = prompt[:400].astype(np.int32)
        self._known = [*self._known[-200:], prompt]
        fate = rng.choice(["whole", "abort", "drop"], p=[0.9, 0.05, 0.05])
        tokens = LONG_ANSWER_TOKENS if rng.random() < LONG_ANSWERS else rng.integers(1, 12)
        return prompt, int(tokens), str(fate)

    def answered(self, prompt: np.ndarray, answer: list[int]) -> None:
        """A client sends a long answer back, trimmed."""
        if len(answer) == LONG_ANSWER_TOKENS:
            self._known.append(np.concatenate([prompt, answer[:-TRIMMED]]).astype(np.int32))


def body(prompt: np.ndarray, answer_tokens: int, rid: str, stream: bool, key: dict[str, str]) -> dict:
    sampling = {"temperature": 0, "max_new_tokens": answer_tokens, "ignore_eos": True}
    return {"rid": rid, "input_ids": prompt.tolist(), "sampling_params": sampling, "stream": stream, **key}


async def ask(
    http: aiohttp.ClientSession, url: str, prompt: np.ndarray, tokens: int, rid: str, key: dict[str, str]
) -> list[int]:
    async with http.post(f"{url}/generate", json=body(prompt, tokens, rid, False, key)) as response:
        answer = await response.json()
        if response.status != 200:
            raise CheckFailedError(f"request {rid}: HTTP {response.status}: {str(answer)[:200]}")
        return answer["output_ids"]


async def disturb(
    http: aiohttp.ClientSession, url: str, prompt: np.ndarray, fate: str, rid: str, key: dict[str, str]
) -> None:
    """A long answer that is ended from outside."""
    if fate == "abort":
        running = asyncio.create_task(http.post(f"{url}/generate", json=body(prompt, 300, rid, False, key)))
        await asyncio.sleep(0.03)
        async with http.post(f"{url}/abort_request", json={"rid": rid}):
            pass
        (await running).release()
        return
    async with http.post(f"{url}/generate", json=body(prompt, 300, rid, True, key)) as response:
        async for _ in response.content.iter_any():
            return


async def soak(
    live: Server,
    plain: Server,
    requests: int,
    concurrency: int,
    seed: int,
    *,
    killing: bool,
    slowing: bool,
    tenants: Tenants | None,
) -> dict:
    """Send it all. Returns counts and figures; raises CheckFailedError at the first wrong answer."""
    traffic, counts = Traffic(seed), Counter()
    memory: list[tuple[int, float]] = []
    gate = asyncio.Semaphore(concurrency)
    timeout = aiohttp.ClientTimeout(total=600)
    began = time.monotonic()
    troubles = [asyncio.create_task(pause(live, counts, seed))]
    if killing:
        troubles.append(asyncio.create_task(kill_tuners(live, counts)))
    if slowing:
        troubles.append(asyncio.create_task(slow_down_rank(live, counts, seed)))
    if tenants is not None:
        await asyncio.to_thread(tenants.pin)
        troubles.append(asyncio.create_task(tenants.watch()))
    # Idle connections go before the server closes them (after 5 s), or a busy machine loses that race.
    connector = aiohttp.TCPConnector(keepalive_timeout=1)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("requests", total=requests)

            async def one(number: int) -> None:
                async with gate:
                    prompt, tokens, fate = traffic.next()
                    key = tenants.key() if tenants is not None else {}
                    if fate != "whole":
                        await disturb(http, live.url, prompt, fate, f"soak-{number}", key)
                    else:
                        got = await ask(http, live.url, prompt, tokens, f"soak-{number}", key)
                        traffic.answered(prompt, got)
                        if number % 25 == 0:
                            wanted = await ask(http, plain.url, prompt, tokens, f"plain-{number}", {})
                            counts["compared"] += 1
                            if got != wanted:
                                raise CheckFailedError(
                                    f"request {number}: {got} with the extension, {wanted} without"
                                )
                    counts[fate] += 1
                    progress.advance(task)

            for start in range(0, requests, FLUSH_EVERY):
                numbers = range(start, min(start + FLUSH_EVERY, requests))
                async with asyncio.TaskGroup() as group:
                    for number in numbers:
                        group.create_task(one(number))
                await asyncio.to_thread(settled, live)
                if tenants is not None:
                    await asyncio.to_thread(tenants.check_pins)
                memory.append((numbers[-1] + 1, memory_mb(live)))
                if not progress.console.is_terminal:
                    progress.console.print(so_far(numbers[-1] + 1, requests, time.monotonic() - began))
                if (start // FLUSH_EVERY) % 2:
                    await asyncio.to_thread(live.flush_cache if tenants is None else tenants.flush)
                    counts["flushes"] += 1
    for trouble in troubles:
        trouble.cancel()
    for ended in await asyncio.gather(*troubles, return_exceptions=True):
        if not isinstance(ended, asyncio.CancelledError):
            raise ended
    section = settled(live)
    return {
        "requests": requests,
        "counts": dict(counts),
        "tenants": tenants.report() if tenants is not None else {},
        "seconds": round(time.monotonic() - began, 1),
        "memory_mb": memory,
        "slots": section["slots"],
        "table": section["table"],
        "policy": section["policy"],
        "stats": section["stats"],
    }


def so_far(done: int, requests: int, seconds: float) -> str:
    """The progress bar in words, for a log."""
    left_min = (requests - done) * seconds / done / 60
    return f"{done:,} of {requests:,} requests, {done / seconds:.1f} a second, {left_min:.0f} min left"


def settled(live: Server) -> dict:
    """The extension's report once nothing runs, and once the whole tree was walked since where that takes no longer
    than `WALK_S`. Raises CheckFailedError: a slot is missing, table and tree differ, or a request's sums were wrong."""
    deadline, rest_s, walks = time.monotonic() + 30, None, 0
    while True:
        live.require_alive()
        section = live.info()["internal_states"][0]["marconi"]
        slots, table = section["slots"], section["table"]
        if table["differences"] or section["stats"]["wrong_sums"]:
            raise CheckFailedError(f"table and tree differ, or sums are wrong: {table}, {section['stats']}")
        if slots["unaccounted"] == slots["held"] == 0:
            if rest_s is None:
                rest_s, walks = time.monotonic(), table["walks"]
            # the first of two walks may have begun earlier
            if table["walks"] >= walks + 2 or time.monotonic() > rest_s + WALK_S:
                return section
            time.sleep(0.2)
            continue
        if time.monotonic() > deadline:
            raise CheckFailedError(f"slots are missing while nothing runs: {slots}")
        time.sleep(0.2)


def model_for(family: str, server_flags: str) -> SmallModel:
    """Prompts pass several of its chunks; where the server speculates, an embedding that drafts can go by."""
    sizes = {"vocab": VOCABULARY, **({"chunk_size": 64} if family == "mamba2" else {})}
    return small_model(family, **sizes, **({"embedding_scale": 8} if "--speculative" in server_flags else {}))


def main(
    requests: Annotated[int, typer.Option(min=100)] = 20_000,
    concurrency: Annotated[int, typer.Option(min=1)] = 8,
    slots: Annotated[int, typer.Option(min=40)] = 60,
    tokens: Annotated[int, typer.Option(min=4_000)] = 4_500,
    ranks: Annotated[int, typer.Option(min=1, max=2)] = 1,
    family: Annotated[str, typer.Option(help="Of the small model.")] = "mamba2",
    policy: Annotated[str, typer.Option(help="As --marconi-eviction.")] = "gittins",
    kill_tuner: Annotated[
        bool, typer.Option("--kill-tuner", help="Kill its process again and again.")
    ] = False,
    slow_rank: Annotated[
        bool, typer.Option("--slow-rank", help="Hold the second rank now and then.")
    ] = False,
    tenants: Annotated[
        bool, typer.Option("--tenants", help="A batch that floods beside a chat, quotas, and pins.")
    ] = False,
    server_flags: Annotated[str, typer.Option(help="More flags for the server under test.")] = "",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json: Annotated[Path | None, typer.Option(metavar="FILE")] = None,
) -> None:
    """Soak the live engine; exit code 1 where anything is wrong."""
    check_writable(json)
    if slow_rank and ranks == 1:
        raise typer.BadParameter("there is one rank; give --ranks 2 as well", param_hint="--slow-rank")
    with tempfile.TemporaryDirectory(prefix="marconi-soak-") as folder:
        model = write_small_model(Path(folder) / "model", model_for(family, server_flags))
        common = {
            **CPU_OPTIONS,
            "model_path": model,
            "max_running_requests": concurrency,
            "skip_tokenizer_init": True,
            "sleep_on_idle": True,
        }
        marconi = {
            "enable_marconi": True,
            "marconi_eviction": policy,
            "max_mamba_cache_size": slots,
            "max_total_tokens": tokens,
            "tp_size": ranks,
        }
        off = {"disable_radix_cache": True, "max_total_tokens": 50_000, "max_mamba_cache_size": 200}
        env = environment(cpu=True)
        two = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1", "SGLANG_ENABLE_RANK_CONSENSUS_CHECKER": "1"}
        checks = {**env, **CHECKS, **(two if ranks == 2 else {})}
        more = [*shlex.split(server_flags), *(flags() if tenants else [])]
        with (
            Server(ServerSpec((*to_flags({**common, **marconi}), *more), checks)) as live,
            Server(ServerSpec(tuple(to_flags({**common, **off})), env)) as plain,
        ):
            for server in (live, plain):
                server.launch()
            for server in (live, plain):
                server.wait_until_healthy()
            result = asyncio.run(
                soak(
                    live,
                    plain,
                    requests,
                    concurrency,
                    seed,
                    killing=kill_tuner,
                    slowing=slow_rank,
                    tenants=Tenants(live, slots, VOCABULARY, seed) if tenants else None,
                )
            )
            log = live.log_text()
            live.require_alive()
        problems = [sign for sign in LOG_ERRORS if sign in log.replace("consensus checker is enabled", "")]
        after = [mb for number, mb in result["memory_mb"] if number >= SETTLE_SHARE * requests]
        if len(after) > 1 and after[-1] > GROWTH * after[0]:
            problems.append(f"memory grew from {after[0]:.0f} to {after[-1]:.0f} MB")
        result |= {"ranks": ranks, "retractions": log.count("#retracted_reqs"), "problems": problems}
    if json:
        row = result | {"memory_mb": [mb for _, mb in result["memory_mb"]], "problems": len(problems)}
        config = {"family": family, "slots": slots, "tokens": tokens, "server_flags": server_flags}
        made = records_of(
            [{"eviction": policy, **row}],
            bench="soak",
            case=("ranks",),
            provider="eviction",
            seed=seed,
            config=config,
        )
        write(made, json)
    Console().print(result)
    if problems:
        raise SystemExit("; ".join(problems))


if __name__ == "__main__":
    typer.run(main)
