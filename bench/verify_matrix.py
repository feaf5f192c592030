"""Live equals simulated for every policy that a server can follow: slices of five real traces, pools ample and tight.

One server a policy and pool serves all slices one after another, one request at a time, so that later ones meet a
warm tree; the simulation does the same. Prints a Markdown table as it goes; exit code 1 where any request differs.

    python bench/verify_matrix.py --traces FOLDER [--policies ours,lru] [--requests 60] [--json FILE]
"""

from __future__ import annotations

import signal
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from records import records_of, write
from rich.console import Console
from rich.progress import Progress

from marconi_ext.commands.verify.run import Verification, VerifyOptions, require_live_policy, verify
from marconi_ext.models.toy_model import write_model
from marconi_ext.output import check_writable
from marconi_ext.servers.engine_options import ModelFacts
from marconi_ext.traces.read import read_trace
from marconi_ext.traces.rescript import rescript
from marconi_ext.traces.script import Script

TRACES = {
    "mini_swe_agent": "mini_swe_agent/sessions.jsonl.gz",
    "tau_bench": "tau_bench",
    "bbh_fewshot": "bbh_fewshot",
    "magagent": "lmcache_agent_trace/magagent",
    "toolbench": "toolbench_dfs",
}
POLICIES = "gittins,gittins-basic,lru,lru-leaf,seglen,flop-aware:1,marconi,exact+lru,fork-predictor+seglen"
POOLS = {"ample": (1_500, 600_000), "tight": (16, 24_000)}  # state slots, KV tokens
ANSWER_TOKENS = 8  # decoding only takes time here
TUNING = ("--marconi-bootstrap-window-size", "40", "--marconi-tuning-interval", "60")


def chained(folder: Path, requests: int, max_prompt_tokens: int, vocabulary: int) -> list[Script]:
    """The slices as scripts, one trace after another; a session's name begins with its trace's."""
    scripts: list[Script] = []
    for name, path in TRACES.items():
        found = rescript(
            read_trace(folder / path),
            vocabulary=vocabulary,
            max_prompt_tokens=max_prompt_tokens,
            max_answer_tokens=ANSWER_TOKENS,
            wanted=requests,
        )
        scripts += [renamed(script, name, float(len(scripts) + i)) for i, script in enumerate(found.scripts)]
    return scripts


def renamed(script: Script, trace: str, at_s: float) -> Script:
    fork = script.fork and replace(script.fork, parent=f"{trace}/{script.fork.parent}")
    return Script(f"{trace}/{script.session_id}", (replace(script.turns[0], at_s=at_s),), fork)


def by_trace(found: Verification) -> dict[str, Counter[str]]:
    """For each trace: prompt tokens, those that were reused live, and the requests that differ."""
    totals: dict[str, Counter[str]] = defaultdict(Counter)
    for one in found.requests:
        total = totals[one.session_id.split("/")[0]]
        total["prompt_tokens"] += one.prompt_tokens
        total["live_tokens"] += one.live
        total["differ"] += one.live != one.simulated
    return totals


def shown(total: Counter[str]) -> str:
    rate = f"{100 * total['live_tokens'] / total['prompt_tokens']:.1f}"
    return f"{rate} ({total['differ']} differ)" if total["differ"] else rate


def main(
    traces: Annotated[Path, typer.Option(help="Folder with the real traces.")],
    policies: Annotated[str, typer.Option(help="As --marconi-eviction.")] = POLICIES,
    pools: Annotated[str, typer.Option(help="ample, tight, or both.")] = ",".join(POOLS),
    requests: Annotated[int, typer.Option(min=1, help="Of each trace.")] = 60,
    max_prompt_tokens: Annotated[int, typer.Option(min=1, max=8_192)] = 6_000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json: Annotated[Path | None, typer.Option(metavar="FILE")] = None,
) -> None:
    """Verify all of it."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that the server is stopped too
    check_writable(json)
    names = [require_live_policy(name) for name in policies.split(",")]
    console, results, failed = Console(stderr=True), [], 0
    print(f"| pool | policy | {' | '.join(TRACES)} | requests | agree |\n{'|---' * (len(TRACES) + 4)}|")
    with tempfile.TemporaryDirectory(prefix="marconi-model-") as folder:
        model = write_model(Path(folder) / "toy-hybrid")
        scripts = chained(traces, requests, max_prompt_tokens, ModelFacts(model).vocabulary)
        for pool in pools.split(","):
            for name in names:
                slots, tokens = POOLS[pool]
                options = VerifyOptions(model, True, scripts, len(scripts), name, slots, tokens, TUNING)
                with Progress(console=console, transient=True) as progress:
                    task = progress.add_task(f"{pool}, {name}", total=len(scripts))
                    found = verify(options, lambda _, p=progress, t=task: p.advance(t))
                failed += not found.agrees
                totals = by_trace(found)
                results += [{"pool": pool, "trace": t, "policy": name, **dict(n)} for t, n in totals.items()]
                results.append({"pool": pool, "trace": "all", "policy": name, "agrees": found.agrees})
                row = " | ".join(map(shown, totals.values()))
                verdict = "yes" if found.agrees else f"no: {found.live_holds} / {found.simulated_holds}"
                print(f"| {pool} | {name} | {row} | {len(found.requests)} | {verdict} |", flush=True)
    if json:
        made = records_of(
            results, bench="verify_matrix", case=("pool", "trace"), provider="policy", seed=seed
        )
        write(made, json)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
