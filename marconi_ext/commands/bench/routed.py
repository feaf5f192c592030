"""`marconi bench --servers N --router …`: one traffic over several real servers, router after router.

Requests go one at a time in the traffic's order, so that a run depends on its seed and router alone, and can be held
against the simulation of the same order. A session pauses while all others speak.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from marconi_ext.commands.bench.routers import Router, make_router
from marconi_ext.errors import CheckFailedError
from marconi_ext.policies.registry import parse_policy
from marconi_ext.profiles import profile_from_config
from marconi_ext.replay.client import OK, Answer
from marconi_ext.replay.progress import ReplayProgress
from marconi_ext.replay.sender import Record
from marconi_ext.replay.traffic import Traffic
from marconi_ext.servers.arm_server import ServerOptions, server_flags
from marconi_ext.servers.arms import Arm, require_status
from marconi_ext.servers.engine_options import environment
from marconi_ext.servers.http_client import direct_client
from marconi_ext.servers.server import Server, ServerSpec, free_port
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.cell import Options
from marconi_ext.simulator.fleet import ROUTINGS, run_fleet
from marconi_ext.simulator.workload import Workload, load_workload
from marconi_ext.traces import Request
from marconi_ext.traces.request import token_array

SETTLE_S = 0.05  # for state events to arrive between two requests; a gateway wouldn't wait
SIMULATED = {
    "round-robin": "round-robin",
    "sticky": "sticky",
    "resumable": "resumable",
    "cache_aware": "prefix",
}


@dataclass(frozen=True)
class Fleet:
    """Running servers, each with the port of its state events."""

    servers: list[Server]
    event_ports: list[int]

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.servers]


def start_fleet(stack: ExitStack, options: ServerOptions, arm: Arm, servers: int, logs: Path) -> Fleet:
    """Start servers side by side; they stop with the stack. Raises ServerError, CheckFailedError."""
    logs.mkdir(parents=True, exist_ok=True)
    fleet = Fleet([], [])
    for number in range(servers):
        port = free_port()
        config = {"publisher": "zmq", "endpoint": f"tcp://*:{port}", "topic": "states"}
        events = ("--marconi-events", "states", "--marconi-events-config", json.dumps(config))
        flags = (
            *server_flags(options, arm),
            "--weight-version",
            str(number),
            *(events if arm.extended else ()),
        )
        spec = ServerSpec(flags, environment(cpu=options.cpu), options.launcher)
        server = stack.enter_context(Server(spec, logs / f"server-{number}.log"))
        server.launch()
        fleet.servers.append(server)
        fleet.event_ports.append(port)
    for server in fleet.servers:
        server.wait_until_healthy(options.start_timeout_s)
        require_status(arm, server.log_text())
    return fleet


def run_routed(
    options: ServerOptions,
    arm: Arm,
    servers: int,
    routers: Sequence[str],
    runs: Sequence[Sequence[Traffic]],
    logs: Path,
) -> list[dict[str, Any]]:
    """A row a run, traffic and router, JSON-ready. runs: the traffics of each seed. Raises as `start_fleet`."""
    rows: list[dict[str, Any]] = []
    with ReplayProgress() as progress, ExitStack() as stack:
        progress.expect(len(routers) * sum(len(t.plan().items) for traffics in runs for t in traffics))
        progress.wait(f"{servers} servers start")
        fleet = start_fleet(stack, options, arm, servers, logs)
        for number, traffic in ((n, found) for n, traffics in enumerate(runs) for found in traffics):
            for name in routers:
                for server in fleet.servers:
                    server.flush_cache()
                with closing(make_router(name, fleet.urls, fleet.event_ports, logs)) as router:
                    served, row = _play(fleet, router, traffic, progress, name)
                rows.append({"traffic": traffic.name, "run": number, "router": name, **row})
                rows[-1]["simulated_hit_rate"] = _simulate(options, servers, name, served)
    return rows


def _play(
    fleet: Fleet, router: Router, traffic: Traffic, progress: ReplayProgress, name: str
) -> tuple[Workload, dict[str, Any]]:
    plan, requests, hits, ttft_ms = traffic.plan(), [], 0, []
    by_server, computed = [0] * len(fleet.servers), [0] * len(fleet.servers)
    before = [_lost(server) for server in fleet.servers]
    progress.open_bar(f"{traffic.name}, {name}", len(plan.items))
    for index, item in enumerate(plan.items):
        prompt = plan.prompt(index)
        url, headers = router.pick(prompt, item.session_id)
        with direct_client(url, timeout_s=300.0) as http:
            found, timed = _ask(http, prompt, item.answer_tokens, headers)
        router.ended()
        progress.record(Record(item.session_id, item.turn, prompt, timed))
        answer, meta = token_array(found["output_ids"]), found["meta_info"]
        where = int(meta["weight_version"])
        plan.answered(index, prompt, answer)
        requests.append(Request(item.session_id, item.turn, float(index), prompt, answer))
        hits += meta["cached_tokens"]
        by_server[where] += 1
        computed[where] += len(prompt) - meta["cached_tokens"]
        ttft_ms.append(1e3 * (timed.ttft_s or 0.0))
        time.sleep(SETTLE_S)
    served = load_workload(traffic.name, 0, requests)
    total = int(served.prompt_tokens.sum())
    lost = [_lost(server) for server in fleet.servers]
    p50, p95 = np.percentile(ttft_ms, [50, 95])
    return served, {
        "requests": len(requests),
        "prompt_tokens": total,
        "token_hit_rate": hits / total,
        "ideal_hit_rate": served.ideal_tokens / total,
        "state_limited_loss": None
        if None in lost
        else sum(int(now or 0) - int(then or 0) for now, then in zip(lost, before, strict=True)) / total,
        "requests_by_server": by_server,
        "busiest_over_mean": max(computed) * len(computed) / max(1, sum(computed)),
        "ttft_ms": {"p50": round(float(p50), 2), "p95": round(float(p95), 2)},
    }


def _ask(
    http: httpx.Client, prompt: np.ndarray, answer_tokens: int, headers: dict[str, str]
) -> tuple[dict[str, Any], Answer]:
    """(the server's whole answer, its times and counts)"""
    sampling = {"temperature": 0, "max_new_tokens": answer_tokens, "ignore_eos": True}
    body = {"input_ids": prompt.tolist(), "sampling_params": sampling, "stream": True}
    sent_s, first_s, last = time.perf_counter(), 0.0, ""
    try:
        with http.stream("POST", "/generate", json=body, headers=headers) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    first_s, last = first_s or time.perf_counter(), line
        found = json.loads(last.removeprefix("data: "))
        if answer.status_code != 200 or "output_ids" not in found:
            raise CheckFailedError(f"HTTP {answer.status_code}: {last[:200]}")
    except (httpx.HTTPError, ValueError) as error:
        raise CheckFailedError(f"{http.base_url}: a request failed: {error!r}") from None
    meta = found["meta_info"]
    timed = Answer(
        OK,
        "",
        sent_s,
        first_s,
        time.perf_counter(),
        prompt_tokens=meta["prompt_tokens"],
        cached_tokens=meta["cached_tokens"],
    )
    return found, timed


def _lost(server: Server) -> int | None:
    """Tokens lost for want of a state so far; None where the server doesn't count them."""
    section = server.info()["internal_states"][0].get("marconi")
    return None if section is None else sum(section["stats"]["lost_tokens"].values())


def _simulate(options: ServerOptions, servers: int, router: str, served: Workload) -> float | None:
    """The hit rate that the simulator gives the same requests in the same order; None for routers that it hasn't."""
    routing = SIMULATED.get(router.removeprefix("sglang:"))
    if routing not in ROUTINGS or options.state_slots is None:
        return None
    config = json.loads((options.model_path / "config.json").read_text(encoding="utf-8"))
    profile = profile_from_config(config)
    room = Capacity(slots=max(1, options.state_slots - 1), tokens=options.max_total_tokens or 10**9)
    cell = run_fleet(served, servers, routing, parse_policy("gittins"), room, profile, Options())
    return float(cell["token_hit_rate"])
