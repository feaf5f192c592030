"""Several servers behind a router, by simulation: each has a cache of its own, and the rule sees what a router sees.

Requests are routed in the order in which they arrive, or so many are kept open. A server prefills one prompt after
another, at the roofline's speed; that gives the load that rules weigh. `sticky` sends a session's first request to the
server with fewest sessions; `prefix` is sglang-router's cache_aware, which remembers what was sent; `resumable` knows
what each server can resume, and picks the one that would have prefilled it first.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from marconi_ext.policies.registry import PolicyName
from marconi_ext.policies.table.checkpoints import CheckpointTable, Kind
from marconi_ext.profiles import ModelProfile
from marconi_ext.routing.rules import Demand, begins_anew, least_work, longest_prefix
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.cell import Options, currencies
from marconi_ext.simulator.radix_tree import RadixTree
from marconi_ext.simulator.roofline import prefill_s, step_s
from marconi_ext.simulator.simulator import Served, Simulator
from marconi_ext.simulator.workload import Workload
from marconi_ext.traces import Request

ENDS = frozenset({Kind.LAST_TOKEN, Kind.PROMPT_END, Kind.INPUT_END, Kind.IN_ANSWER})
ROUTINGS = ("round-robin", "sticky", "prefix", "resumable")


class Cache(Protocol):
    """One server's cache."""

    @property
    def tree(self) -> RadixTree: ...

    @property
    def table(self) -> CheckpointTable: ...

    def serve(self, request: Request) -> Served: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one request: tokens hit, tokens whose KV its server held, seconds to the first token, time of the last."""

    hit_tokens: int
    kv_tokens: int
    ttft_s: float
    ended_s: float


class _Server:
    """A cache, the prefills that wait for it, and the answers that it writes."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.sessions = 0
        self.requests = 0
        self.computed_tokens = 0
        self.queued_tokens = 0
        self._free_at_s = 0.0
        self._waiting: deque[tuple[float, int]] = deque()  # (end of its prefill, tokens)
        self._ends_s: list[float] = []  # of open requests
        self.depth_sum = self.states = 0

    def advance(self, now_s: float) -> None:
        while self._waiting and self._waiting[0][0] <= now_s:
            self.queued_tokens -= self._waiting.popleft()[1]
        while self._ends_s and self._ends_s[0] <= now_s:
            heapq.heappop(self._ends_s)

    def look(self) -> None:
        """Note what a router is told of its states; they change only when it serves."""
        table = self.cache.table
        rows = table.held[: table.num_live]
        self.states, self.depth_sum = len(rows), int(table.depth[rows].sum())

    def resume(self, prompt: np.ndarray) -> tuple[int, bool]:
        """(tokens of a prompt that it can resume, whether a conversation ended there)"""
        node = self.cache.tree.lookup(prompt).state_node
        if node is None:
            return 0, False
        return node.depth_tokens, self.cache.table.kind.item(node.record) in ENDS

    @property
    def open_requests(self) -> int:
        return len(self._ends_s)

    def take(self, now_s: float, tokens: int, prefill_s: float, answer_s: float) -> tuple[float, float]:
        """Queue a prefill. Returns: when the first token comes, and the last."""
        self._free_at_s = max(self._free_at_s, now_s) + prefill_s
        self._waiting.append((self._free_at_s, tokens))
        heapq.heappush(self._ends_s, self._free_at_s + answer_s)
        self.queued_tokens += tokens
        self.computed_tokens += tokens
        self.requests += 1
        return self._free_at_s, self._free_at_s + answer_s


class _Sent:
    """What a router that reads prompts remembers of those it sent: one tree, each node with who had it first."""

    def __init__(self) -> None:
        self._tree = RadixTree()

    def match(self, prompt: np.ndarray) -> tuple[int, int]:
        """(tokens that the longest match has, its server)"""
        look = self._tree.lookup(prompt)
        node = look.partial or (look.path[-1] if look.path else None)
        return (0, 0) if node is None else (look.kv_tokens, node.record)

    def add(self, prompt: np.ndarray, server: int) -> None:
        inserted = self._tree.insert(prompt, 0)
        if inserted.upper is not None:
            inserted.upper.record = next(
                child.record for child in inserted.upper.children.values() if child.record is not None
            )
        if inserted.node.record is None:
            inserted.node.record = server


class Fleet:
    """caches: of the servers; routing: one of ROUTINGS; profile, gpu: how fast each is"""

    def __init__(self, caches: Sequence[Cache], routing: str, profile: ModelProfile, gpu: str) -> None:
        self.servers = [_Server(cache) for cache in caches]
        self._routing, self._profile, self._gpu = routing, profile, gpu
        self._home: dict[str, int] = {}  # session -> server
        self._sent = _Sent()
        self._turn = 0
        self._demand = Demand(len(caches))

    def serve(self, request: Request, now_s: float | None = None) -> Outcome:
        """Route and serve one request, at its time of arrival if not told otherwise."""
        now = request.arrival_s if now_s is None else now_s
        for server in self.servers:
            server.advance(now)
        prompt = request.input_ids
        server = self.servers[0 if len(self.servers) == 1 else self._pick(request)]
        served = server.cache.serve(request)
        if self._routing == "resumable":
            server.look()
        seconds = float(prefill_s(self._profile, float(len(prompt)), float(served.hit_tokens), self._gpu))
        answer_s = len(request.output_ids) * step_s(self._profile, self._gpu)
        first, last = server.take(now, len(prompt) - served.hit_tokens, seconds, answer_s)
        return Outcome(served.hit_tokens, served.kv_tokens, first - now, last)

    def keep_open(self, requests: Sequence[Request], open_requests: int) -> list[Outcome]:
        """Serve with so many requests open, whatever their times: the first whose turn before has ended goes next."""
        found, left = [], list(requests)
        free_s, ended_s = [0.0] * open_requests, dict[str, float]()
        while left:
            now = heapq.heappop(free_s)
            at = _ready(left, ended_s, now)
            if at is None:  # all that are left wait for their own turn before
                now = min(ended_s[request.session_id] for request in left)
                at = _ready(left, ended_s, now) or 0
            request = left.pop(at)
            found.append(self.serve(request, now))
            ended_s[request.session_id] = found[-1].ended_s
            heapq.heappush(free_s, found[-1].ended_s)
        return found

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
            picked = longest_prefix(
                len(prompt), *self._sent.match(prompt), [s.open_requests for s in servers]
            )
            self._sent.add(prompt, picked)
            return picked
        resumable, goes_on = zip(*(server.resume(prompt[:-1]) for server in servers), strict=True)
        queued = [server.queued_tokens for server in servers]
        states = sum(server.states for server in servers)
        depth = sum(server.depth_sum for server in servers) / states if states else 0.0
        picked = least_work(len(prompt), resumable, goes_on, queued, self._demand.prices(depth))
        self._demand.sent(picked, begins=begins_anew(resumable, goes_on))
        return picked


def _ready(requests: Sequence[Request], ended_s: dict[str, float], now_s: float) -> int | None:
    """Where the first request is whose session isn't being answered."""
    return next((i for i, one in enumerate(requests) if ended_s.get(one.session_id, 0.0) <= now_s), None)


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
    open_requests: int | None = None,
) -> dict:
    """One cell: JSON-ready. Rates are fractions of the prompt tokens; `capacity` is each server's.

    open_requests: keep so many open; None: they come at their times
    """
    started = time.perf_counter()
    caches = simulators(servers, policy, capacity, profile, options)
    fleet = Fleet(caches, routing, profile, options.gpu)
    requests = sorted(workload.requests, key=lambda r: r.arrival_s)
    results = (
        [fleet.serve(r) for r in requests]
        if open_requests is None
        else fleet.keep_open(requests, open_requests)
    )
    for cache in caches:
        cache.finish()
    hit, held = sum(result.hit_tokens for result in results), sum(result.kv_tokens for result in results)
    total = int(workload.prompt_tokens.sum())
    ttft_ms = 1e3 * np.array([result.ttft_s for result in results])
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
