"""One cell of a sweep: a trace, a policy and a capacity, and everything that is reported of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from marconi_ext.errors import BadInputError
from marconi_ext.policies.currency import Currency
from marconi_ext.policies.interfaces import Eviction
from marconi_ext.policies.registry import PolicyName
from marconi_ext.policies.table.checkpoints import Kind
from marconi_ext.profiles import ModelProfile
from marconi_ext.simulator.against import compare
from marconi_ext.simulator.artifact_eviction import FlopAware as ArtifactFlopAware
from marconi_ext.simulator.artifact_eviction import LruLeaves
from marconi_ext.simulator.artifact_tree import ArtifactTree
from marconi_ext.simulator.artifact_tuning import TunedArtifact, flops_saved
from marconi_ext.simulator.artifact_vllm import VllmTree
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.clairvoyant import Clairvoyant, Future
from marconi_ext.simulator.law import Law
from marconi_ext.simulator.roofline import ttft_estimate
from marconi_ext.simulator.simulator import Simulator
from marconi_ext.simulator.workload import Workload

STATIC_ALPHAS = tuple(i / 10 for i in range(21))


@dataclass(frozen=True)
class Options:
    """What holds for all cells of a sweep."""

    objective: str = "flops"
    concurrency: int = 1
    per_request: bool = False
    gpu: str = "h100"


def run_cell(
    workload: Workload, policy: PolicyName, capacity: Capacity, profile: ModelProfile, options: Options
) -> dict:
    """Simulate and report; a JSON-ready dict. Rates are fractions of the prompt tokens."""
    started = time.perf_counter()
    if policy.family == "artifact":
        hits, report = _artifact(workload, policy, capacity, profile)
    elif policy.eviction == "best-static":
        hits, report = _best_static(workload, policy, capacity, profile, options)
    else:
        hits, report = _corrected(workload, policy, capacity, profile, options)
    hits_array = np.array(hits, np.int64)
    prompts = workload.prompt_tokens
    total = int(prompts.sum())
    all_flops = sum(map(profile.prefix_flops, prompts.tolist()))
    saved = report.pop("flops_saved", None)
    if saved is None:
        saved = sum(map(profile.prefix_flops, hits))
    cell = {
        "trace": workload.name,
        "seed": workload.seed,
        "policy": policy.text,
        "model": profile.name,
        "capacity_bytes": capacity.bytes,
        "slots": capacity.slots,
        "tokens": capacity.tokens,
        "requests": len(hits),
        "prompt_tokens": total,
        "hit_tokens": int(hits_array.sum()),
        "token_hit_rate": int(hits_array.sum()) / total,
        "flops_saved": saved,
        "flops_saved_fraction": saved / all_flops,
        "ideal_hit_rate": workload.ideal_tokens / total,
        **report,
        "ttft_estimate": ttft_estimate(profile, prompts, hits_array, options.gpu),
        "seconds": round(time.perf_counter() - started, 3),
    }
    if options.per_request:
        cell["hits"] = hits
    return cell


def currencies(profile: ModelProfile, options: Options, capacity: Capacity) -> tuple[Currency, Currency]:
    """(what a cache counts in, what its policy goes by)."""
    counted = profile.currency(options.objective)
    # in a pool of slots a state costs a slot, however much KV hangs on it
    return counted, counted if capacity.bytes is not None else replace(counted, kv_bytes_per_token=0.0)


def simulator_of(
    workload: Workload, policy: PolicyName, capacity: Capacity, profile: ModelProfile, options: Options
) -> Simulator:
    """A fresh simulator with an online policy, or with a yardstick and this policy's admission."""
    counted, currency = currencies(profile, options, capacity)
    eviction: Eviction
    if policy.eviction in ("clairvoyant", "law"):
        admission, _ = replace(policy, family="online", eviction="lru").build(currency)
        future = Future(workload.requests)
        knows_draws = policy.eviction == "clairvoyant"
        eviction = Clairvoyant(currency, future) if knows_draws else Law(currency, future, workload.requests)
    else:
        admission, eviction = policy.build(currency)
    return Simulator(capacity, admission, eviction, counted, options.concurrency)


def _corrected(
    workload: Workload, policy: PolicyName, capacity: Capacity, profile: ModelProfile, options: Options
) -> tuple[list[int], dict]:
    return _drive(workload, simulator_of(workload, policy, capacity, profile, options))


def compare_cell(
    workload: Workload,
    policy: PolicyName,
    against: PolicyName,
    capacity: Capacity,
    profile: ModelProfile,
    options: Options,
) -> dict:
    """What `against` was served that the policy wasn't (`against.compare`), and which cell this is. Both save where
    the policy's admission says."""
    same_places = replace(against, admission=policy.admission, admission_parameter=policy.admission_parameter)
    both = [simulator_of(workload, name, capacity, profile, options) for name in (policy, same_places)]
    cell = {"trace": workload.name, "seed": workload.seed, "policy": policy.text, "against": against.text}
    return {**cell, "capacity": capacity.label, **compare(workload.requests, *both)}


def _drive(workload: Workload, simulator: Simulator) -> tuple[list[int], dict]:
    hits: list[int] = []
    lost: dict[str, int] = {}
    held = 0
    for request in workload.requests:
        served = simulator.serve(request)
        hits.append(served.hit_tokens)
        held += served.kv_tokens
        for cause, tokens in served.lost.items():
            lost[cause] = lost.get(cause, 0) + tokens
    simulator.finish()
    total = int(workload.prompt_tokens.sum())
    return hits, {
        "state_limited_loss": (held - sum(hits)) / total,
        "causes": {cause: tokens / total for cause, tokens in sorted(lost.items())},
        "kv_limited_loss": (workload.ideal_tokens - held) / total,
        "held_bytes": _held_bytes(simulator),
        "evictions": dict(simulator.counts),
        "parameters": simulator.eviction.parameters(),
    }


def _held_bytes(simulator: Simulator) -> dict[str, float]:
    table, currency = simulator.table, simulator.currency
    live = table.live_rows()
    held = {
        f"state_{kind.name.lower()}": int((table.kind[live] == kind).sum()) * currency.state_bytes
        for kind in Kind
    }
    held = {name: amount for name, amount in held.items() if amount}
    held["kv"] = simulator.tree.num_tokens * currency.kv_bytes_per_token
    return held


def _best_static(
    workload: Workload, policy: PolicyName, capacity: Capacity, profile: ModelProfile, options: Options
) -> tuple[list[int], dict]:
    """The α that saved most FLOPs on this very trace: what perfect tuning of the paper's rule could reach."""
    best: tuple[float, list[int], dict] | None = None
    tried: dict[str, float] = {}
    for alpha in STATIC_ALPHAS:
        static = PolicyName("", "online", policy.admission, policy.admission_parameter, "flop-aware", alpha)
        hits, report = _corrected(workload, static, capacity, profile, options)
        saved = sum(map(profile.prefix_flops, hits))
        tried[f"{alpha:.1f}"] = sum(hits) / int(workload.prompt_tokens.sum())
        if best is None or saved > best[0]:
            best = (saved, hits, report)
    assert best is not None, "no α was tried"
    best[2]["parameters"]["token_hit_rate_by_alpha"] = tried
    return best[1], best[2]


def _artifact(
    workload: Workload, policy: PolicyName, capacity: Capacity, profile: ModelProfile
) -> tuple[list[int], dict]:
    if capacity.bytes is None or profile.name != "paper-7b":
        raise BadInputError(f"--policy {policy.text}: wants --model paper-7b and a --capacity in bytes")
    server: VllmTree | TunedArtifact | ArtifactTree
    tree: VllmTree | ArtifactTree
    if policy.eviction == "artifact-vllm":
        tree = server = VllmTree(capacity.bytes)
    elif policy.eviction == "artifact-marconi":
        server = TunedArtifact(capacity.bytes)
        tree = server.tree
    else:
        static = policy.eviction == "artifact-static"
        evictor = ArtifactFlopAware(policy.eviction_parameter or 0.0) if static else LruLeaves()
        tree = server = ArtifactTree(capacity.bytes, evictor)
    hits = []
    for request in workload.requests:
        sequence = np.concatenate([request.input_ids, request.output_ids])
        hits.append(server.serve(sequence[: len(request.input_ids)], sequence))
    tree.check()
    total = int(workload.prompt_tokens.sum())
    report: dict[str, Any] = {
        "flops_saved": flops_saved(hits),
        "state_limited_loss": None
        if isinstance(tree, VllmTree)
        else (tree.matched_tokens - sum(hits)) / total,
        "causes": {},
        "held_bytes": {
            "state": tree.num_nodes * profile.state_bytes,
            "kv": tree.num_tokens * profile.kv_bytes_per_token,
        },
        "evictions": {"nodes": tree.evictions},
        "parameters": {},
    }
    if isinstance(server, TunedArtifact):
        report["parameters"] = {
            "alpha": server.alpha,
            "window_requests": server.window_requests,
            "tuned": server.tuned,
            "tuning_seconds": round(server.tuning_seconds, 3),
        }
    elif policy.eviction == "artifact-static":
        report["parameters"] = {"alpha": policy.eviction_parameter}
    return hits, report
