"""Tuning in another process: the same α as on the spot, from an agreed request on, whatever happens to the child."""

import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.paper import background
from marconi_ext.policies.paper.background import ASK_EVERY, GIVE_UP_AFTER, AlphaProcess, Tuner, replayed
from marconi_ext.policies.paper.tuner import Marconi
from marconi_ext.policies.registry import parse_policy
from marconi_ext.simulator.live_rules import LiveRules


def recorded(requests: int = 200) -> tuple[LiveRules, Marconi]:
    """A policy whose window is full and not tuned yet."""
    admission, policy = parse_policy("marconi").build(Currency())
    policy.background, policy.window_requests = True, 120
    live = LiveRules(8, 4_000, admission, policy, Currency())
    rng = np.random.default_rng(3)
    known = [rng.integers(0, 50, 30).astype(np.int32) for _ in range(12)]
    for _ in range(requests):
        at = int(rng.integers(len(known)))
        live.serve(known[at], rng.integers(0, 50, 4).astype(np.int32))
        known[at] = np.concatenate([known[at], rng.integers(0, 50, 12)]).astype(np.int32)[:150]
    assert policy.due
    return live, policy


def step_until_applied(tuner: Tuner, first: int, last: int) -> int | None:
    for request in range(first, last):
        tuner.step(request)
        if tuner.applied:
            return request
        time.sleep(0.005)
    return None


def test_the_child_finds_what_tuning_on_the_spot_finds() -> None:
    from marconi_ext.policies.paper.alpha_replay import tune_alpha

    _, policy = recorded()
    expected, told = tune_alpha(policy.snapshot()), []
    tuner = Tuner(policy, on_tuned=lambda *news: told.append(news))
    request = step_until_applied(tuner, 200, 200 + GIVE_UP_AFTER)
    tuner.close()
    assert tuner.applied == [(request, expected)] and policy.alpha == expected and policy.tuned
    assert (request - 200) % ASK_EVERY == 0 and told[0][2] == request - 200


def children(monkeypatch: pytest.MonkeyPatch, program: str | None = None) -> list[subprocess.Popen]:
    """All that will be started, in order. program: to run in their place"""
    started: list[subprocess.Popen] = []

    def start(command: list[str], **pipes: int) -> subprocess.Popen:
        started.append(subprocess.Popen([sys.executable, "-c", program] if program else command, **pipes))
        return started[-1]

    module = SimpleNamespace(Popen=start, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr(background, "subprocess", module)
    return started


def test_a_killed_child_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _, policy = recorded()
    rounds, started = AlphaProcess(), children(monkeypatch)
    rounds.submit(policy.snapshot())
    first, _ = rounds.wait()
    started[0].kill()
    started[0].wait()
    rounds.submit(policy.snapshot())
    assert rounds.wait()[0] == first
    assert rounds.answer() is not None and len(started) == 2
    rounds.close()


def test_a_round_that_was_given_up_cannot_answer_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child of a slow rank: its late answer would be another α than the other ranks'."""
    echo = "import pickle, sys, time; from marconi_ext.policies.paper.tuner_process import receive, send\n"
    echo += "while True: log = receive(sys.stdin.buffer); time.sleep(1); send(sys.stdout.buffer, (log, 0.0))"
    children(monkeypatch, echo)
    rounds, seen = AlphaProcess(), set()
    rounds.submit("first")
    time.sleep(0.5)
    rounds.submit("second")
    deadline = time.monotonic() + 60
    while rounds.answer() != ("second", 0.0) and time.monotonic() < deadline:
        seen.add(rounds.answer())
        time.sleep(0.01)
    assert rounds.answer() == ("second", 0.0) and seen == {None}
    rounds.close()


def test_a_round_waits_for_all_ranks_and_is_dropped_in_the_end() -> None:
    class Never:
        def submit(self, log: object) -> None: ...

        def answer(self) -> None: ...

    _, policy = recorded()
    tuner = Tuner(policy, rounds=Never())
    for request in range(200, 200 + GIVE_UP_AFTER + ASK_EVERY + 1):
        tuner.step(request)
    assert policy.tuned and policy.alpha == 0.0 and tuner.applied == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_rank_that_is_late_finds_the_same(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """A later pipeline stage is told when a round takes effect, and may not have its own answer yet."""
    from marconi_ext.policies.paper.alpha_replay import tune_alpha

    _, policy = recorded()
    expected = tune_alpha(policy.snapshot())
    if fails:
        children(monkeypatch, "raise SystemExit(1)")
    tuner = Tuner(policy, agree=lambda request, ready: True)
    tuner.step(200)
    tuner.step(200 + ASK_EVERY)
    tuner.close()
    assert tuner.applied == [(200 + ASK_EVERY, expected)]


@pytest.mark.parametrize("takes_effect", [200 + ASK_EVERY, 200 + 5 * ASK_EVERY])
def test_a_server_s_rounds_can_be_replayed(takes_effect: int) -> None:
    _, policy = recorded()
    tuner = replayed(policy, None, [takes_effect])
    for request in range(200, 300):
        tuner.step(request)
    assert [request for request, _ in tuner.applied] == [takes_effect]


def test_it_tunes_again_after_the_interval() -> None:
    live, policy = recorded()
    tuner = replayed(policy, 50, range(10_000))
    live.tuner = tuner
    rng = np.random.default_rng(8)
    for _ in range(400):
        live.serve(rng.integers(0, 50, 40).astype(np.int32), rng.integers(0, 50, 4).astype(np.int32))
    assert len(tuner.applied) >= 2
