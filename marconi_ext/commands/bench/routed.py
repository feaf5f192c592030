"""`marconi bench --servers N --router …`: one traffic over several real servers, router after router.

A session pauses while all others speak. With one request at a time a run depends on its seed and router alone, and is
held against the simulation of the same order.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Condition
from typing import Any

import httpx
import numpy as np

from marconi_ext.commands.bench.routed_simulation import Routed, RoutedSimulation
from marconi_ext.commands.bench.routers import Router, Way, make_router
from marconi_ext.errors import CheckFailedError
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
from marconi_ext.simulator.workload import load_workload
from marconi_ext.traces import Request
from marconi_ext.traces.request import token_array

SETTLE_S = 0.05  # for state events to arrive between two requests; a gateway wouldn't wait
NOT_SIMULATED: dict[str, Any] = {"simulated_hit_rate": None, "simulated_otherwise": None}


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
            "--skip-server-warmup",  # its requests would be cached, and the simulation knows nothing of them
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
    concurrency: int,
    logs: Path,
) -> list[dict[str, Any]]:
    """A row a run, traffic and router, JSON-ready. Raises as `start_fleet`.

    runs: the traffics of each seed; concurrency: requests in flight; routers take turns at being first, since what
    the servers' policies have learned stays
    """
    rows: list[dict[str, Any]] = []
    with ReplayProgress() as progress, ExitStack() as stack:
        progress.expect(len(routers) * sum(len(t.plan().items) for traffics in runs for t in traffics))
        progress.wait(f"{servers} servers start")
        fleet = start_fleet(stack, options, arm, servers, logs)
        simulation = _simulation(options, fleet) if concurrency == 1 else None
        traffics = [(number, traffic) for number, found in enumerate(runs) for traffic in found]
        for turn, (number, traffic) in enumerate(traffics):
            first = turn % len(routers)
            for name in (*routers[first:], *routers[:first]):
                for server in fleet.servers:
                    server.flush_cache()
                with closing(make_router(name, fleet.urls, fleet.event_ports, logs)) as router:
                    routed, row = _play(fleet, router, traffic, concurrency, progress, name)
                simulated = simulation.play(name, routed) if simulation else NOT_SIMULATED
                rows.append({"traffic": traffic.name, "run": number, "router": name, **row, **simulated})
    return sorted(rows, key=lambda row: routers.index(row["router"]))


class _Play:
    """The requests of one run: what may be sent next, and what has been answered."""

    def __init__(self, router: Router, traffic: Traffic, progress: ReplayProgress) -> None:
        self.plan = traffic.plan()
        self.routed: list[Routed] = []
        self.ttft_ms: list[float] = []
        self._router, self._progress = router, progress
        self._left = list(range(len(self.plan.items)))
        self._ended: set[int] = set()
        self._news = Condition()
        self._failed = False

    def work(self, settle_s: float) -> None:
        """Send one request after another while there are any. Raises CheckFailedError."""
        try:
            while (taken := self._take()) is not None:
                index, prompt, way = taken
                item = self.plan.items[index]
                prefilled = partial(self._prefilled, way)
                with direct_client(way.url, timeout_s=300.0) as http:
                    found, timed = _ask(http, prompt, item.answer_tokens, way.headers, prefilled)
                time.sleep(settle_s)
                self._note(index, prompt, found, timed)
        except BaseException:
            with self._news:
                self._failed = True
                self._news.notify_all()
            raise

    def _take(self) -> tuple[int, np.ndarray, Way] | None:
        """The first request that waits for nothing; None: there will be no more."""
        items = self.plan.items
        with self._news:
            while self._left and not self._failed:
                ready = next((i for i in self._left if self._ended.issuperset(items[i].after)), None)
                if ready is not None:
                    self._left.remove(ready)
                    prompt = self.plan.prompt(ready)
                    return ready, prompt, self._router.pick(prompt, items[ready].session_id)
                self._news.wait()
            return None

    def _prefilled(self, way: Way) -> None:
        with self._news:
            self._router.prefilled(way)

    def _note(self, index: int, prompt: np.ndarray, found: dict[str, Any], timed: Answer) -> None:
        item, meta, answer = self.plan.items[index], found["meta_info"], token_array(found["output_ids"])
        with self._news:
            self._progress.record(Record(item.session_id, item.turn, prompt, timed))
            self.plan.answered(index, prompt, answer)
            request = Request(item.session_id, item.turn, float(len(self.routed)), prompt, answer)
            self.routed.append(Routed(request, int(meta["weight_version"]), meta["cached_tokens"]))
            self.ttft_ms.append(1e3 * (timed.ttft_s or 0.0))
            self._ended.add(index)
            self._news.notify_all()


def _play(
    fleet: Fleet, router: Router, traffic: Traffic, concurrency: int, progress: ReplayProgress, name: str
) -> tuple[list[Routed], dict[str, Any]]:
    before = [_lost(server) for server in fleet.servers]
    play = _Play(router, traffic, progress)
    progress.open_bar(f"{traffic.name}, {name}", len(play.plan.items))
    with ThreadPoolExecutor(concurrency) as pool:
        workers = [pool.submit(play.work, SETTLE_S if concurrency == 1 else 0.0) for _ in range(concurrency)]
    for worker in workers:
        worker.result()
    served = load_workload(traffic.name, 0, [one.request for one in play.routed])
    by_server, computed = [0] * len(fleet.servers), [0] * len(fleet.servers)
    for one in play.routed:
        by_server[one.server] += 1
        computed[one.server] += len(one.request.input_ids) - one.reused_tokens
    total = int(served.prompt_tokens.sum())
    lost = [_lost(server) for server in fleet.servers]
    p50, p95 = np.percentile(play.ttft_ms, [50, 95])
    return play.routed, {
        "requests": len(play.routed),
        "prompt_tokens": total,
        "token_hit_rate": sum(one.reused_tokens for one in play.routed) / total,
        "ideal_hit_rate": served.ideal_tokens / total,
        "state_limited_loss": None
        if None in lost
        else sum(int(now or 0) - int(then or 0) for now, then in zip(lost, before, strict=True)) / total,
        "requests_by_server": by_server,
        "busiest_over_mean": max(computed) * len(computed) / max(1, sum(computed)),
        "ttft_ms": {"p50": round(float(p50), 2), "p95": round(float(p95), 2)},
    }


def _ask(
    http: httpx.Client,
    prompt: np.ndarray,
    answer_tokens: int,
    headers: Mapping[str, str],
    on_first: Callable[[], None],
) -> tuple[dict[str, Any], Answer]:
    """(the server's whole answer, its times and counts). on_first: is called when its first token has come"""
    sampling = {"temperature": 0, "max_new_tokens": answer_tokens, "ignore_eos": True}
    body = {"input_ids": prompt.tolist(), "sampling_params": sampling, "stream": True}
    sent_s, first_s, last = time.perf_counter(), 0.0, ""
    try:
        with http.stream("POST", "/generate", json=body, headers=dict(headers)) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    if not first_s:
                        first_s = time.perf_counter()
                        on_first()
                    last = line
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


def _simulation(options: ServerOptions, fleet: Fleet) -> RoutedSimulation | None:
    """Of the servers' own rules; None where the simulator hasn't them: no extension, or larger pages."""
    found = [server.info() for server in fleet.servers]
    sections = [info["internal_states"][0].get("marconi") for info in found]
    if None in sections or any(info["page_size"] > 1 for info in found):
        return None
    config = json.loads((options.model_path / "config.json").read_text(encoding="utf-8"))
    return RoutedSimulation(sections, profile_from_config(config))
