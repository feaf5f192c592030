"""Several servers behind a router, by simulation: each has a cache of its own, and the rule sees what a router sees.

Requests are routed in the order in which they arrive. A server prefills one prompt after another, at the roofline's
speed; that gives the load that rules weigh. `sticky` sends a session's first request to the server with fewest
sessions; `prefix` is sglang-router's cache_aware, which remembers what was sent; `resumable` knows what each server
can resume, and picks the one that would have prefilled it first.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from marconi_ext.policies.registry import PolicyName
from marconi_ext.policies.table.checkpoints import CheckpointTable, Kind
from marconi_ext.profiles import ModelProfile
from marconi_ext.routing.rules import Demand, least_work, longest_prefix
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.cell import Options, currencies
from marconi_ext.simulator.radix_tree import RadixTree
from marconi_ext.simulator.roofline import prefill_s
from marconi_ext.simulator.simulator import Served, Simulator
from marconi_ext.simulator.workload import Workload
from marconi_ext.traces import Request

ENDS = frozenset({Kind.LAST_TOKEN, Kind.PROMPT_END, Kind.INPUT_END, Kind.IN_ANSWER})
ROUTINGS = ("round-robin", "sticky", "prefix", "resumable")


class Cache(Protocol):
    """One server's cache. counts: `saves`, states saved so far"""

    @property
    def tree(self) -> RadixTree: ...

    @property
    def table(self) -> CheckpointTable: ...

    @property
    def counts(self) -> Mapping[str, int]: ...

    def serve(self, request: Request) -> Served: ...


class _Server:
    """A cache, and the prefills that wait for it. seconds: a request of so many tokens, so many of them resumed"""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.sent = RadixTree()  # what a router that reads prompts remembers
        self.sessions = 0
        self.requests = 0
        self.computed_tokens = 0
        self.free_at_s = 0.0
        self._waiting: deque[tuple[float, int]] = deque()  # (end of its prefill, tokens)
        self.queued_tokens = 0
        self.depth_sum = self.states = self.saves = 0

    def advance(self, now_s: float) -> None:
        while self._waiting and self._waiting[0][0] <= now_s:
            self.queued_tokens -= self._waiting.popleft()[1]

    def look(self) -> None:
        """Note what a router is told of its states; they change only when it serves."""
        table = self.cache.table
        rows = table.held[: table.num_live]
        self.states, self.depth_sum = len(rows), int(table.depth[rows].sum())
        self.saves = self.cache.counts["saves"]

    def resume(self, prompt: np.ndarray) -> tuple[int, bool]:
        """(tokens of a prompt that it can resume, whether a conversation ended there)"""
        node = self.cache.tree.lookup(prompt).state_node
        if node is None:
            return 0, False
        return node.depth_tokens, self.cache.table.kind.item(node.record) in ENDS

    @property
    def open_requests(self) -> int:
        return len(self._waiting)

    def take(self, now_s: float, tokens: int, seconds: float) -> float:
        """Queue a prefill. Returns: seconds until its first token."""
        self.free_at_s = max(self.free_at_s, now_s) + seconds
        self._waiting.append((self.free_at_s, tokens))
        self.queued_tokens += tokens
        self.computed_tokens += tokens
        self.requests += 1
        return self.free_at_s - now_s


class Fleet:
    """caches: of the servers; routing: one of ROUTINGS; profile, gpu: how fast each prefills"""

    def __init__(self, caches: Sequence[Cache], routing: str, profile: ModelProfile, gpu: str) -> None:
        self.servers = [_Server(cache) for cache in caches]
        self._routing, self._profile, self._gpu = routing, profile, gpu
        self._home: dict[str, int] = {}  # session -> server
        self._turn = 0
        self._demand = Demand(len(caches))

    def serve(self, request: Request) -> tuple[int, int, float]:
        """Route and serve one request. Returns: tokens hit, tokens whose KV that server held, seconds to the first
        token."""
        now = request.arrival_s
        for server in self.servers:
            server.advance(now)
        prompt = request.input_ids
        server = self.servers[0 if len(self.servers) == 1 else self._pick(request)]
        served = server.cache.serve(request)
        if self._routing == "prefix":
            server.sent.insert(prompt, self._turn)
        elif self._routing == "resumable":
            server.look()
            self._demand.saved([each.saves for each in self.servers])
        seconds = float(prefill_s(self._profile, float(len(prompt)), float(served.hit_tokens), self._gpu))
        ttft = server.take(now, len(prompt) - served.hit_tokens, seconds)
        return served.hit_tokens, served.kv_tokens, ttft

    def _pick(self, request: Request) -> int:
        self._turn += 1
        servers, prompt = self.servers, request.input_ids
        if self._routing == "round-robin":
            return (self._turn - 1) % len(servers)
        if self._routing == "sticky":
            home = self._home.get(request.session_id)
            if home is None:
                home = min(range(len(servers)), key=lambda i: (servers[i].sessions, i))
                self._home[request.session_id] = home
                servers[home].sessions += 1
            return home
        if self._routing == "prefix":
            matched = [server.sent.lookup(prompt).kv_tokens for server in servers]
            loads = [server.open_requests for server in servers]
            return longest_prefix(len(prompt), matched, loads, [server.sent.num_tokens for server in servers])
        resumable, goes_on = zip(*(server.resume(prompt[:-1]) for server in servers), strict=True)
        queued = [server.queued_tokens for server in servers]
        states = sum(server.states for server in servers)
        depth = sum(server.depth_sum for server in servers) / states if states else 0.0
        return least_work(len(prompt), resumable, goes_on, queued, self._demand.prices(depth))


def simulators(
    servers: int, policy: PolicyName, capacity: Capacity, profile: ModelProfile, options: Options
) -> list[Simulator]:
    """Empty caches, each of `capacity`."""
    counted, currency = currencies(profile, options, capacity)
    return [
        Simulator(capacity, *policy.build(currency), counted, options.concurrency) for _ in range(servers)
    ]


def run_fleet(
    workload: Workload,
    servers: int,
    routing: str,
    policy: PolicyName,
    capacity: Capacity,
    profile: ModelProfile,
    options: Options,
) -> dict:
    """One cell: JSON-ready. Rates are fractions of the prompt tokens; `capacity` is each server's."""
    started = time.perf_counter()
    caches = simulators(servers, policy, capacity, profile, options)
    fleet = Fleet(caches, routing, profile, options.gpu)
    results = [fleet.serve(r) for r in sorted(workload.requests, key=lambda r: r.arrival_s)]
    for cache in caches:
        cache.finish()
    hit, held = (sum(result[i] for result in results) for i in (0, 1))
    total = int(workload.prompt_tokens.sum())
    ttft_ms = 1e3 * np.array([result[2] for result in results])
    computed = np.array([server.computed_tokens for server in fleet.servers], float)
    p50, p95 = np.percentile(ttft_ms, [50, 95])
    return {
        "trace": workload.name,
        "seed": workload.seed,
        "policy": policy.text,
        "model": profile.name,
        "capacity": capacity.label,
        "servers": servers,
        "routing": routing,
        "requests": len(results),
        "prompt_tokens": total,
        "token_hit_rate": hit / total,
        "ideal_hit_rate": workload.ideal_tokens / total,
        "state_limited_loss": (held - hit) / total,
        "elsewhere_loss": (workload.ideal_tokens - held) / total,
        "busiest_over_mean": float(computed.max() / computed.mean()) if computed.any() else 1.0,
        "requests_by_server": [server.requests for server in fleet.servers],
        "ttft_estimate": {"p50_ms": round(float(p50), 3), "p95_ms": round(float(p95), 3)},
        "seconds": round(time.perf_counter() - started, 3),
    }
