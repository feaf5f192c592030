"""Are answers equal to those with the prefix cache off, for a family and what servers are run with? On the CPU engine.

500 requests (agent sessions, few-shot questions, forks one token apart) once with the cache off, one at a time; then
through a server with the extension a setting, eight at a time. Greedy tokens must be equal and logprobs agree to 1e-4;
at the end no state's slot may be missing. Prints a Markdown row a setting; exit code 1 where anything differs.

    python bench/equal_outputs.py --family gdn [--settings page-16,tight] [--requests 500] [--json FILE]
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from mixed_workload import VOCABULARY, mixed_workload
from records import records_of, write

from marconi_ext.commands.server_setup import small_model
from marconi_ext.errors import BadInputError
from marconi_ext.models.families import FAMILIES, write_small_model
from marconi_ext.output import check_writable
from marconi_ext.servers.engine_options import CPU_OPTIONS, environment, to_flags
from marconi_ext.servers.server import Server, ServerSpec
from marconi_ext.traces.script import Histories, in_order

COMMON: dict[str, object] = {
    **CPU_OPTIONS,
    "max_total_tokens": 100_000,
    "max_mamba_cache_size": 4_000,
    "max_running_requests": 16,
    "skip_tokenizer_init": True,
    "skip_server_warmup": True,
    "sleep_on_idle": True,
    "log_level": "warning",
}
SETTINGS: dict[str, dict[str, object]] = {
    "ample": {},
    "chunked-and-mixed": {"chunked_prefill_size": 256, "enable_mixed_chunk": True},
    "page-16": {"page_size": 16, "chunked_prefill_size": 256},
    "page-64": {"page_size": 64, "disable_overlap_schedule": True},
    "two-ranks": {"tp_size": 2, "max_mamba_cache_size": 60},
    "host-tier": {"enable_hierarchical_cache": True, "max_mamba_cache_size": 96},
    "tight": {"max_mamba_cache_size": 60, "max_total_tokens": 12_000, "chunked_prefill_size": 256},
}
TOLERANCE = 1e-4
LEAK_CHECKS = {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1"}


@dataclass(frozen=True)
class Answer:
    ids: list[int]
    logprobs: np.ndarray
    cached_tokens: int


@dataclass(frozen=True)
class Row:
    """One setting. differing: requests; worst: largest difference of logprobs where the tokens are equal."""

    setting: str
    requests: int
    differing: int
    worst: float
    hit_rate: float
    unaccounted: int
    seconds: float
    counters: dict[str, int]


@contextmanager
def serving(model: Path, options: dict[str, object]) -> Iterator[tuple[Server, httpx.Client]]:
    env = {**environment(cpu=True), **LEAK_CHECKS}
    if options.get("tp_size"):
        env |= {"SGLANG_CPU_OMP_THREADS_BIND": "0|1", "SGLANG_ENABLE_RANK_CONSENSUS_CHECKER": "1"}
    flags = to_flags({"model_path": str(model), **COMMON, **options})
    with Server(ServerSpec(tuple(flags), env)) as server:
        server.start(timeout_s=400)
        yield server, httpx.Client(base_url=server.url, timeout=600, trust_env=False)


def ask(client: httpx.Client, prompt: np.ndarray, tokens: int) -> Answer:
    sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    body = {"input_ids": prompt.tolist(), "sampling_params": sampling, "return_logprob": True}
    response = client.post("/generate", json=body | {"logprob_start_len": -1})
    response.raise_for_status()
    result: dict[str, Any] = response.json()
    logprobs = [entry[0] for entry in result["meta_info"]["output_token_logprobs"]]
    return Answer(result["output_ids"], np.array(logprobs), result["meta_info"]["cached_tokens"])


def record(client: httpx.Client, requests: int) -> list[tuple[np.ndarray, int, Answer]]:
    """Each request once, one at a time; a prompt holds the answers before it."""
    scripts = mixed_workload()
    histories, cases = Histories(scripts), []
    for script, turn in in_order(scripts)[:requests]:
        prompt, tokens = histories.prompt(script, turn), script.turns[turn].answer_tokens
        answer = ask(client, prompt, tokens)
        histories.answered(script, prompt, np.asarray(answer.ids, dtype=np.int32))
        cases.append((prompt, tokens, answer))
    return cases


def compared(setting: str, cases: Sequence[tuple[np.ndarray, int, Answer]], model: Path) -> Row:
    with serving(model, {"enable_marconi": True, **SETTINGS[setting]}) as (server, client):
        started = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda case: ask(client, case[0], case[1]), cases))
        seconds = time.monotonic() - started
        section = server.info()["internal_states"][0]["marconi"]
        server.require_alive()
    gaps = [
        float(np.abs(one.logprobs - case[2].logprobs).max()) if one.ids == case[2].ids else float("inf")
        for one, case in zip(answers, cases, strict=True)
    ]
    return Row(
        setting,
        len(cases),
        sum(gap > TOLERANCE for gap in gaps),
        max((gap for gap in gaps if np.isfinite(gap)), default=0.0),
        100 * sum(one.cached_tokens for one in answers) / sum(len(case[0]) for case in cases),
        section["slots"]["unaccounted"],
        seconds,
        section["counters"],
    )


def main(
    family: Annotated[str, typer.Option(help="Of the small model.")] = "gdn",
    settings: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(SETTINGS),
    requests: Annotated[int, typer.Option(min=1, max=500)] = 500,
    json: Annotated[Path | None, typer.Option(metavar="FILE")] = None,
) -> None:
    """Compare every setting with the cache off."""
    check_writable(json)
    names = settings.split(",")
    if family not in FAMILIES or set(names) - set(SETTINGS):
        raise BadInputError(f"families: {', '.join(FAMILIES)}; settings: {', '.join(SETTINGS)}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="marconi-model-") as folder:
        model = write_small_model(Path(folder) / family, small_model(family, vocab=VOCABULARY))
        with serving(model, {"disable_radix_cache": True}) as (_, client):
            cases = record(client, requests)
        print(
            "| setting | requests | differ | worst logprob gap | hit rate % | slots missing | s |\n"
            + "|---" * 7
            + "|"
        )
        for name in names:
            row = compared(name, cases, model)
            rows.append(row)
            cells = [row.setting, row.requests, row.differing, f"{row.worst:.1e}", f"{row.hit_rate:.1f}"]
            print(
                "| " + " | ".join(map(str, [*cells, row.unaccounted, f"{row.seconds:.0f}"])) + " |",
                flush=True,
            )
    if json:
        made = [{"family": family, **asdict(row)} for row in rows]
        write(records_of(made, bench="equal_outputs", case=("setting",), provider="family"), json)
    raise SystemExit(any(row.differing or row.unaccounted for row in rows))


if __name__ == "__main__":
    typer.run(main)
