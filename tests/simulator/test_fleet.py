"""Servers behind a router: a fleet of one is the simulator, and each rule does what it says."""

from __future__ import annotations

import numpy as np
import pytest

from marconi_ext.commands.simulate.fleet import parse_fleets
from marconi_ext.errors import BadInputError
from marconi_ext.policies.registry import parse_policy
from marconi_ext.profiles import load_profile
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.cell import Options, run_cell
from marconi_ext.simulator.fleet import ROUTINGS, Fleet, Outcome, run_fleet, simulators
from marconi_ext.simulator.workload import Workload, load_workload
from marconi_ext.traces import Request

PROFILE = load_profile("nemotron-h-8b", ssm_dtype=None, kv_dtype="bfloat16", tp=1)
OURS, ROOM = parse_policy("gittins"), Capacity(slots=12, tokens=100_000)


def chats(sessions: int = 20, turns: int = 6) -> Workload:
    """Sessions over three system prompts, turn by turn, so that each pauses while the others speak."""
    rng = np.random.default_rng(0)
    draw = lambda tokens: rng.integers(0, 1_000, tokens).astype(np.int32)  # noqa: E731
    systems = [draw(300) for _ in range(3)]
    history = [systems[number % 3] for number in range(sessions)]
    requests = []
    for turn in range(turns):
        for number in rng.permutation(sessions):
            prompt, answer = np.concatenate([history[number], draw(50)]), draw(20)
            requests.append(Request(str(number), turn, float(len(requests)), prompt, answer))
            history[number] = np.concatenate([prompt, answer])
    return load_workload("chats", 0, requests)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_one_server_is_the_simulator(routing: str) -> None:
    workload = chats()
    alone = run_cell(workload, OURS, ROOM, PROFILE, Options())
    fleet = run_fleet(workload, 1, routing, OURS, ROOM, PROFILE, Options())
    for name in ("token_hit_rate", "ideal_hit_rate", "state_limited_loss"):
        assert fleet[name] == alone[name]
    assert fleet["elsewhere_loss"] == pytest.approx(alone["kv_limited_loss"])


def test_sticky_keeps_sessions_and_round_robin_does_not() -> None:
    workload = chats()
    for routing, one_home in (("sticky", True), ("round-robin", False)):
        fleet = Fleet(simulators(3, OURS, ROOM, PROFILE, Options()), routing, PROFILE, "h100")
        where: dict[str, set[int]] = {}
        for request in workload.requests:
            before = [server.requests for server in fleet.servers]
            fleet.serve(request)
            after = [server.requests for server in fleet.servers]
            where.setdefault(request.session_id, set()).add(int(np.argmax(np.subtract(after, before))))
        counts = {len(places) for places in where.values()}
        assert (counts == {1}) == one_home, f"{routing}: servers a session: {counts}"


def test_routing_by_states_wins_back_most_and_keeps_the_balance() -> None:
    """Round robin finds each session's history on another server; `prefix` here leaves one server without work."""
    workload = chats()
    cells = {r: run_fleet(workload, 4, r, OURS, ROOM, PROFILE, Options()) for r in ROUTINGS}
    hits = {routing: cell["token_hit_rate"] for routing, cell in cells.items()}
    assert hits["resumable"] > hits["round-robin"] + 0.2
    assert hits["resumable"] > hits["sticky"] + 0.02
    assert hits["resumable"] > hits["prefix"] - 0.02
    assert cells["resumable"]["busiest_over_mean"] < cells["prefix"]["busiest_over_mean"]


class Timed(Fleet):
    """Answers in a second, and notes what is sent when."""

    def __init__(self) -> None:
        super().__init__(simulators(1, OURS, ROOM, PROFILE, Options()), "sticky", PROFILE, "h100")
        self.sent: list[tuple[Request, float]] = []

    def serve(self, request: Request, now_s: float | None = None) -> Outcome:
        assert now_s is not None
        self.sent.append((request, now_s))
        return Outcome(0, 0, 0.0, now_s + 1.0 + 0.01 * request.turn)


@pytest.mark.parametrize("most", [1, 4, 30])
def test_so_many_requests_are_kept_open(most: int) -> None:
    """Each turn waits for the one before; with fewer sessions than places, some stay empty."""
    fleet, requests = Timed(), chats(sessions=20).requests
    fleet.keep_open(requests, most)
    assert len(fleet.sent) == len(requests)
    ended: dict[str, float] = {}
    for number, (request, now_s) in enumerate(fleet.sent):
        open_now = sum(then <= now_s < then + 1.0 + 0.01 * one.turn for one, then in fleet.sent[: number + 1])
        assert open_now <= min(most, 20)
        assert ended.get(request.session_id, 0.0) <= now_s
        ended[request.session_id] = now_s + 1.0 + 0.01 * request.turn
    assert [r.turn for r, _ in fleet.sent if r.session_id == "3"] == list(range(6))


def test_cache_aware_stays_with_who_had_a_prefix_first() -> None:
    """One request at a time all is idle, so that all goes to the first server; a burst spreads what is new."""
    alone = Fleet(simulators(2, OURS, ROOM, PROFILE, Options()), "prefix", PROFILE, "h100")
    for request in chats().requests:
        alone.serve(request)
    assert [server.requests for server in alone.servers] == [120, 0]
    burst = Fleet(simulators(2, OURS, ROOM, PROFILE, Options()), "prefix", PROFILE, "h100")
    firsts = chats(sessions=3, turns=1).requests  # three system prompts
    for request in (*firsts, *firsts):
        burst.serve(request, 0.0)
    assert [server.requests for server in burst.servers] == [4, 2]


def test_load_spreads_a_burst() -> None:
    """All at once, the same long prompt: waiting costs more than computing it again elsewhere."""
    prompt = np.arange(20_000, dtype=np.int32)
    requests = [Request(str(i), 0, 0.0, np.append(prompt, i).astype(np.int32), prompt[:2]) for i in range(40)]
    fleet = Fleet(simulators(4, OURS, Capacity(), PROFILE, Options()), "resumable", PROFILE, "h100")
    for request in requests:
        fleet.serve(request)
    assert all(server.requests for server in fleet.servers)


@pytest.mark.parametrize(("servers", "routing"), [("0", "sticky"), ("two", "sticky"), ("2", "best")])
def test_bad_fleets_name_the_flag(servers: str, routing: str) -> None:
    with pytest.raises(BadInputError, match=r"--servers|--routing"):
        parse_fleets(servers, routing)
