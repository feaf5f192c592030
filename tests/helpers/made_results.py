"""A results folder made by hand: stock loses what ours reuses, times follow, a pool of 40 states fills and evicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from marconi_ext.replay.outcome import summarise
from marconi_ext.replay.sender import Run
from marconi_ext.results.folder import (
    ArmInfo,
    RequestRecord,
    ResultsFolder,
    RunInfo,
    ServerSnapshot,
    Status,
    Timing,
    TraceInfo,
)
from marconi_ext.results.provenance import provenance
from sglang_hooks.stats import CacheStats

ARMS = {"stock": 0.75, "stock:max-states=3": 0.8, "marconi": 0.99}
"""Arm -> share of the ideal that it reuses."""
SESSIONS, TURNS, POOL = 12, 6, 40


def write_results(
    path: Path,
    *,
    repeats: int = 2,
    title: str = "agent, 40 slots",
    names: Sequence[str] = tuple(ARMS),
    **changes: Any,
) -> Path:
    """Write the folder, with the named arms; `changes` replace fields of its RunInfo."""
    folder = ResultsFolder(path)
    arms = [ArmInfo(name=name, folder=name.replace(":", "_"), flags=["--x", name]) for name in names]
    for arm in arms:
        for repeat in range(repeats):
            records, snapshots = _replay(arm.name, repeat)
            target = folder.repeat(arm, repeat)
            target.write_requests(records)
            target.append(snapshots)
            target.write_summary(summarise(records, Run(records=[]), snapshots))
    info = RunInfo(
        created="2026-01-01T00:00:00Z",
        title=title,
        provenance={**provenance(0), "command": "marconi bench --arms stock,marconi"},
        trace=TraceInfo(
            source="synthetic:agent",
            requests=SESSIONS * TURNS,
            sessions=SESSIONS,
            prompt_tokens=150_000,
            digest="0",
        ),
        timing=Timing(loop="closed", concurrency=4),
        arms=arms,
        repeats=repeats,
        finished=True,
    )
    folder.write_run(info.model_copy(update=changes))
    return path


def _replay(arm: str, repeat: int) -> tuple[list[RequestRecord], list[ServerSnapshot]]:
    rng = np.random.default_rng(repeat)
    stats, records, snapshots, at_s = CacheStats(), [], [], 0.0
    for turn in range(TURNS):
        for session in range(SESSIONS):
            prompt = 700 + 400 * turn + int(rng.integers(0, 300))
            ideal = 0 if turn == 0 else prompt - 300
            state = ideal - (100 if ideal else 0)
            cached = int(min(state, ARMS[arm] * ideal))
            ttft_s = 0.004 + (prompt - cached) * 2e-5 * rng.uniform(0.9, 1.3)
            stats.served(
                prompt, cached, ideal, {"first_divergence": ideal - state, "evicted": state - cached}
            )
            stats.saved("branch" if turn == 0 else "last-token")
            if turn * SESSIONS + session >= POOL:
                stats.evicted("last-token" if session % 3 else "branch", "pool-full")
            at_s += 0.1
            records.append(
                RequestRecord(
                    session_id=f"s{session}",
                    turn=turn,
                    status=Status.OK,
                    ready_s=at_s,
                    sent_s=at_s,
                    ttft_s=ttft_s,
                    itl_s=[0.002],
                    end_s=at_s + ttft_s + 0.01,
                    prompt_tokens=prompt,
                    server_prompt_tokens=prompt,
                    cached_tokens=cached,
                    ideal_tokens=ideal,
                    state_tokens=state,
                    output_tokens=2,
                )
            )
            snapshots.append(_snapshot(arm, at_s, stats))
    return records, snapshots


def _snapshot(arm: str, at_s: float, stats: CacheStats) -> ServerSnapshot:
    if arm != "marconi":
        return ServerSnapshot(
            at_s=at_s, metrics={'sglang:mamba_evictable_tokens{tp_rank="0"}': min(POOL, 10 * at_s)}
        )
    slots = {"pool": POOL, "free": 0, "cached": POOL, "held": 0, "unaccounted": 0}
    return ServerSnapshot(at_s=at_s, marconi={"slots": slots, "stats": stats.snapshot()})
