"""The live engine on a GPU: are answers right with the extension on, whatever it reuses?

    python bench/gpu_live.py [FILE.json] [--dtype bfloat16|float32] [--server-flags "..."]

On a GPU two prefills of one prompt that are cut differently differ by rounding, so answers can't be equal to the
bit. The yardstick is what the engine's own cuts do: log-probabilities of 32 fixed tokens after each prompt, with
the cache off, against (1) the cache off, other chunks and batches, (2) stock's cache, (3) ours, one at a time,
(4) ours in tight pools, eight at a time, chunked and mixed. Ours must be within twice the larger of (1) and (2); a
wrong state is far beyond. All servers share the GPU. Exit code 1 where an arm is beyond its limit.
"""

from __future__ import annotations

import shlex
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import typer
from records import records_of, write
from rich.console import Console
from rich.table import Table

from marconi_ext.models.toy_model import ToyModel, write_model
from marconi_ext.servers.engine_options import environment, to_flags
from marconi_ext.servers.server import Server, ServerSpec
from marconi_ext.traces.script import Histories, Script, in_order
from marconi_ext.traces.workloads import AgentSizes, FewShotSizes, ForkSizes, agent, few_shot, fork

MODEL = ToyModel(
    hidden=1_024,
    pattern="M*M-M*M-",
    heads=16,
    kv_heads=4,
    head_dim=64,
    mamba_heads=32,
    mamba_head_dim=64,
    n_groups=8,
    state_size=128,
    chunk_size=128,
)
WATCHED = [int(token) for token in np.linspace(1_300, MODEL.vocab - 1, 32)]
COMMON = {
    "max_total_tokens": 200_000,
    "max_mamba_cache_size": 1_200,
    "max_running_requests": 16,
    "cuda_graph_max_bs_decode": 16,
    "mem_fraction_static": 0.5,
    "skip_tokenizer_init": True,
    "skip_server_warmup": True,
    "log_level": "info",
}
ENVIRONMENT = {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1"}
TIGHT = {"max_mamba_cache_size": 100, "max_total_tokens": 24_000, "chunked_prefill_size": 512}


@dataclass(frozen=True)
class Arm:
    """options: the server's; concurrency: requests open at once; yardstick: whether it sets the limit"""

    options: dict[str, object]
    concurrency: int = 1
    yardstick: bool = False


ARMS = {
    "off": Arm({"disable_radix_cache": True}),
    "off, chunks of 512, 8 at once": Arm(
        {"disable_radix_cache": True, "enable_mixed_chunk": True, "chunked_prefill_size": 512},
        8,
        yardstick=True,
    ),
    "stock": Arm({}, yardstick=True),
    "marconi": Arm({"enable_marconi": True}),
    "marconi, tight, 8 at once": Arm({"enable_marconi": True, "enable_mixed_chunk": True, **TIGHT}, 8),
}


def workload() -> list[Script]:
    """Agent sessions, few-shot questions and forks that part one token apart."""
    return [
        *agent(AgentSizes(12, 8, 300, (1, 400), (2, 9)), 1, MODEL.vocab),
        *few_shot(FewShotSizes(60, 6, (60, 400), (1, 40), (1, 4)), 2, MODEL.vocab),
        *fork(ForkSizes(12, 4, 5, 1, 130, (1, 90), (2, 9)), 3, MODEL.vocab),
    ]


@dataclass(frozen=True)
class Answer:
    """logprobs: of the watched tokens, at the first token after the prompt, float64[32]"""

    output_ids: list[int]
    logprobs: np.ndarray
    cached_tokens: int


def generate(client: httpx.Client, prompt: np.ndarray, answer_tokens: int) -> Answer:
    body = {
        "input_ids": prompt.tolist(),
        "sampling_params": {"temperature": 0, "max_new_tokens": answer_tokens, "ignore_eos": True},
        "return_logprob": True,
        "logprob_start_len": -1,
        "token_ids_logprob": WATCHED,
    }
    response = client.post("/generate", json=body)
    response.raise_for_status()
    result = response.json()
    first = result["meta_info"]["output_token_ids_logprobs"][0]
    return Answer(
        result["output_ids"], np.array([entry[0] for entry in first]), result["meta_info"]["cached_tokens"]
    )


def record(client: httpx.Client) -> list[tuple[np.ndarray, int, Answer]]:
    """The whole workload, one at a time, each prompt holding the answers before it."""
    scripts = workload()
    histories, cases = Histories(scripts), []
    for script, number in in_order(scripts):
        prompt, tokens = histories.prompt(script, number), script.turns[number].answer_tokens
        answer = generate(client, prompt, tokens)
        histories.answered(script, prompt, np.asarray(answer.output_ids, dtype=np.int32))
        cases.append((prompt, tokens, answer))
    return cases


def compare(expected: list[Answer], answers: list[Answer]) -> dict[str, float]:
    """Differences of log-probabilities after the prompt, and how often the first token is the same."""
    gaps = np.stack([np.abs(a.logprobs - b.logprobs) for a, b in zip(answers, expected, strict=True)])
    pairs = list(zip(answers, expected, strict=True))
    return {
        "mean": float(gaps.mean()),
        "p99": float(np.percentile(gaps.max(axis=1), 99)),
        "worst": float(gaps.max()),
        "same_first_token": float(np.mean([a.output_ids[0] == b.output_ids[0] for a, b in pairs])),
        "same_answer": float(np.mean([a.output_ids == b.output_ids for a, b in pairs])),
        "cached_tokens": sum(answer.cached_tokens for answer in answers),
    }


def main(
    file: Annotated[Path | None, typer.Argument(help="Write the figures here.")] = None,
    dtype: Annotated[str, typer.Option()] = "bfloat16",
    server_flags: Annotated[str, typer.Option(help="More flags for every server.")] = "",
    start_timeout: Annotated[float, typer.Option(help="Seconds for all servers to start.")] = 300,
    logs: Annotated[Path | None, typer.Option(help="Keep the servers' logs in this folder.")] = None,
) -> None:
    """Compare answers with the cache off, stock and ours on the GPU."""
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as running:
        model = write_model(Path(scratch, "model"), MODEL)
        folder = logs or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        clients: dict[str, httpx.Client] = {}
        servers: dict[str, Server] = {}
        for number, (name, arm) in enumerate(ARMS.items()):
            flags = to_flags({"model_path": str(model), "dtype": dtype, **COMMON, **arm.options})
            spec = ServerSpec((*flags, *shlex.split(server_flags)), environment(cpu=False) | ENVIRONMENT)
            servers[name] = running.enter_context(Server(spec, folder / f"{dtype}-{number}.log"))
            servers[name].launch()
        for name, server in servers.items():
            server.wait_until_healthy(start_timeout)
            clients[name] = httpx.Client(base_url=server.url, timeout=120, trust_env=False)
        cases = record(clients["off"])
        expected = [answer for _, _, answer in cases]

        def ask(name: str) -> list[Answer]:
            with ThreadPoolExecutor(ARMS[name].concurrency) as pool:
                return list(pool.map(lambda case: generate(clients[name], case[0], case[1]), cases))

        others = [name for name in ARMS if name != "off"]
        with ThreadPoolExecutor(len(others)) as pool:
            rows = {n: compare(expected, a) for n, a in zip(others, pool.map(ask, others), strict=True)}
        for server in servers.values():
            server.require_alive()
        slots = {
            name: server.info()["internal_states"][0]["marconi"]["slots"]
            for name, server in servers.items()
            if "enable_marconi" in ARMS[name].options
        }
    limit = 2 * max(rows[name]["mean"] for name in others if ARMS[name].yardstick)
    failed = [n for n in others if rows[n]["mean"] > limit and not ARMS[n].yardstick]
    failed += [f"{name}: slots {census}" for name, census in slots.items() if census["unaccounted"]]
    failed += [n for n in slots if rows[n]["cached_tokens"] < 0.9 * rows["stock"]["cached_tokens"]]
    prompt_tokens = sum(len(prompt) for prompt, _, _ in cases)
    table = Table("arm", "mean gap", "P99", "worst", "same first token", "same answer", "reused")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['mean']:.2e}",
            f"{row['p99']:.2e}",
            f"{row['worst']:.2e}",
            f"{row['same_first_token']:.1%}",
            f"{row['same_answer']:.1%}",
            f"{row['cached_tokens'] / prompt_tokens:.1%}",
        )
    console = Console(width=120)
    console.print(
        f"{len(cases)} requests, {prompt_tokens:,} prompt tokens, {dtype}; limit of the mean {limit:.2e}"
    )
    console.print(table)
    console.print("failed: " + "; ".join(failed) if failed else "all within the engine's own differences")
    if file is not None:
        told = [{"dtype": dtype, "arm": name, **row, "failed": name in failed} for name, row in rows.items()]
        told.append({"dtype": dtype, "arm": "limit", "mean": limit})
        write(records_of(told, bench="gpu_live", case=("dtype",), provider="arm"), file)
    raise typer.Exit(bool(failed))


if __name__ == "__main__":
    typer.run(main)
