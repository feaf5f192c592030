"""The index, the follower over real sockets, and the advisor's choices, without a server."""

from __future__ import annotations

import time
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import zmq

from marconi_ext.routing.advisor import Advice, Advisor
from marconi_ext.routing.block_hashes import block_hashes
from marconi_ext.routing.follower import StateFollower
from marconi_ext.routing.rules import Demand, least_work, longest_prefix
from marconi_ext.routing.state_index import StateIndex

PROMPT = np.arange(100)
HASHES = list(block_hashes(PROMPT, 1))


def stored(depth: int, medium: str = "GPU") -> dict:
    fields = {"block_hash": HASHES[depth - 1], "depth_tokens": depth, "kind": "branch", "medium": medium}
    return {"type": "StateStored", **fields}


def removed(depth: int, medium: str = "GPU") -> dict:
    return {"type": "StateRemoved", "block_hash": HASHES[depth - 1], "medium": medium}


class Fake:
    """A server that never sends more than it was told."""

    def __init__(self, *events: dict) -> None:
        self.index = StateIndex()
        self.index.apply(events)

    def poll(self, timeout_ms: int = 0) -> int:
        return 0


def test_index_keeps_a_state_until_it_has_left_every_medium() -> None:
    index = StateIndex()
    index.apply([stored(10), stored(40), stored(40, "CPU_PINNED"), removed(40), {"type": "Novel"}])
    assert index.resumable_tokens(HASHES) == 40 and index.depth_sum == 50
    index.apply([removed(40, "CPU_PINNED"), removed(40)])
    assert index.resumable_tokens(HASHES) == 10 == index.depth_sum
    index.apply([{"type": "AllBlocksCleared"}])
    assert index.resumable_tokens(HASHES) == 0 == len(index)


def test_other_salts_have_other_blocks() -> None:
    assert not set(HASHES) & set(block_hashes(PROMPT, 1, cache_salt="a"))
    assert len(list(block_hashes(PROMPT, 16))) == 6


def test_advisor_weighs_reuse_against_load() -> None:
    ended = {"kind": "last-token"}
    advisor = Advisor({"a": Fake(stored(90) | ended), "b": Fake(stored(20) | ended), "c": Fake()})
    first = advisor.pick(PROMPT)
    assert (first.server, first.resumable_tokens, first.tokens_to_prefill) == ("a", 90, 10)
    for _ in range(8):
        advisor.started(first)
    assert advisor.pick(PROMPT).server == "b"
    for _ in range(8):
        advisor.ended(first)
    assert advisor.pick(PROMPT).server == "a"
    advisor.lost("a")
    assert advisor.pick(PROMPT).server == "b"
    advisor.lost("b")
    advisor.lost("c")
    with pytest.raises(LookupError):
        advisor.pick(PROMPT)
    advisor.back("a")
    assert advisor.pick(PROMPT).resumable_tokens == 0, "a server that was lost has lost its states"


def test_last_token_is_always_computed() -> None:
    assert Advisor({"a": Fake(stored(99), stored(100))}).pick(PROMPT).tokens_to_prefill == 1


def test_rules() -> None:
    idle, new, both = [0, 0], [False, False], [True, True]
    assert least_work(100, [90, 0], new, idle, idle) == 0
    assert least_work(100, [90, 0], new, [91, 0], idle) == 1
    assert least_work(100, [0, 0], new, [5, 5], idle) == 0
    assert least_work(100, [60, 0], new, idle, [80, 0]) == 1, "room there costs more than it saves"
    assert least_work(100, [60, 0], new, idle, [80, 80]) == 0, "so does room at the other"
    assert least_work(100, [60, 0], both, idle, [80, 0]) == 0, "a session that goes on needs no more room"
    assert longest_prefix(100, 31, 1, [0, 9]) == 1
    assert longest_prefix(100, 30, 1, [0, 9]) == 0, "a short match decides nothing"
    assert longest_prefix(100, 90, 0, [80, 10]) == 1, "out of balance"
    assert longest_prefix(100, 90, 0, [80, 60]) == 0


def test_a_shared_prefix_needs_room_where_it_is_missing() -> None:
    idle, new = [0, 0], [False, False]
    assert least_work(100, [60, 0], new, idle, [79, 10]) == 0, "79 there, 60 + 2 x 10 here"
    assert least_work(100, [60, 0], new, idle, [81, 10]) == 1
    assert least_work(100, [0, 0], new, idle, [20, 10]) == 1, "nobody has it"
    assert least_work(100, [60, 20, 0], [True, False, False], [150, 0, 0], [0, 30, 30]) == 1


def test_room_costs_most_where_most_conversations_began() -> None:
    demand = Demand(2)
    assert demand.prices(500) == [0, 0], "nothing is known yet"
    demand.sent(0, begins=True)
    assert demand.prices(500) == [1_000, 0]
    for _ in range(1_000):
        demand.sent(0, begins=False)
    assert demand.prices(500) == [1_000, 0], "turns change nothing"
    demand.sent(1, begins=True)
    first, second = demand.prices(500)
    assert second > 950 > 50 > first, "what began long ago is forgotten"
    demand.forget(1)
    assert demand.prices(500)[1] == 0


def test_sessions_stay_and_new_ones_go_where_room_is() -> None:
    end = stored(60) | {"kind": "last-token"}
    advisor = Advisor({"busy": Fake(stored(20), end), "calm": Fake(stored(20) | {"block_hash": 9_999})})
    fresh = np.append([7_777] * 20, PROMPT[:30])
    first = advisor.pick(fresh)
    assert first.begins and first.server == "busy", "nothing tells them apart yet"
    advisor.started(first)
    advisor.ended(first)
    kept = advisor.pick(PROMPT)
    assert kept.server == "busy" and not kept.begins
    assert advisor.pick(fresh).server == "calm"
    advisor.lost("busy")
    advisor.back("busy")
    assert advisor.pick(fresh).server == "busy", "what it held is gone, and so is what that cost"


class Sender:
    """Sends as SGLang's publisher does, and can leave messages out."""

    def __init__(self) -> None:
        self._context = zmq.Context.instance()
        self.socket = self._context.socket(zmq.PUB)
        port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self.number = 0

    def send(self, *events: dict, arrives: bool = True) -> None:
        if arrives:
            payload = msgspec.msgpack.encode([time.time(), list(events), 0])
            self.socket.send_multipart((b"states", self.number.to_bytes(8, "big"), payload))
        self.number += 1


def test_follower_forgets_after_a_gap_and_after_a_restart() -> None:
    sender = Sender()
    with StateFollower(sender.endpoint) as follower:
        time.sleep(0.3)  # a subscription takes a moment
        sender.send(stored(10))
        sender.send(stored(40))
        assert _polled(follower, lambda: len(follower.index) == 2)
        sender.send(removed(40), arrives=False)
        sender.send(stored(20))
        assert _polled(follower, lambda: follower.lost_batches == 1)
        assert follower.index.resumable_tokens(HASHES) == 20, "nothing from before the gap is believed"
        sender.number = 0
        sender.send(stored(30))
        assert _polled(follower, lambda: follower.index.resumable_tokens(HASHES) == 30)
        assert len(follower.index) == 1
        for _ in range(3):
            sender.send(stored(40))
        assert _polled(follower, lambda: len(follower.index) == 2)
        sender.number = 0
        sender.send(stored(50), arrives=False)  # before the follower was connected again
        sender.send(stored(60))
        assert _polled(follower, lambda: follower.index.resumable_tokens(HASHES) == 60)
        assert len(follower.index) == 1, "what the server had is gone, however much it had said"
    sender.socket.close(linger=0)


class Stub:
    """A server without a model: it resumes what it has seen since it was started, and says so."""

    def __init__(self, sender: Sender) -> None:
        self.sender, self.alive, self.depths = sender, True, set()

    def __call__(self, advice: Advice) -> int:
        """Tokens that it resumed."""
        if not self.alive:
            raise ConnectionRefusedError(advice.server)
        found = max((depth for depth in self.depths if depth < len(PROMPT)), default=0)
        if not self.depths:
            self.depths.add(90)
            self.sender.send(stored(90) | {"kind": "last-token"})
        return found

    def restart(self) -> None:
        """Its first event is sent before anybody listens again."""
        self.alive, self.depths, self.sender.number = True, set(), 0
        self.sender.send(stored(5), arrives=False)


def test_no_request_fails_when_a_server_is_lost_and_started_anew() -> None:
    senders = {name: Sender() for name in "ab"}
    stubs = {name: Stub(sender) for name, sender in senders.items()}
    followers = {name: StateFollower(sender.endpoint) for name, sender in senders.items()}
    advisor = Advisor(followers)
    time.sleep(0.3)
    send = lambda advice: (advice.server, stubs[advice.server](advice))  # noqa: E731
    first, resumed = advisor.serve(PROMPT, send)
    assert resumed == 0 and _polled(followers[first], lambda: len(followers[first].index) == 1)
    assert advisor.serve(PROMPT, send) == (first, 90)

    stubs[first].alive = False
    other, resumed = advisor.serve(PROMPT, send)  # the advisor still believes the news of the first
    assert other != first and resumed == 0
    assert _polled(followers[other], lambda: len(followers[other].index) == 1)
    assert advisor.serve(PROMPT, send) == (other, 90)

    stubs[first].restart()
    advisor.back(first)
    assert advisor.serve(PROMPT, send) == (other, 90), "the first is believed to have nothing, rightly"
    stubs[other].alive = False
    assert advisor.serve(PROMPT, send) == (first, 0)
    assert _polled(followers[first], lambda: followers[first].index.resumable_tokens(HASHES) == 90)
    assert advisor.serve(PROMPT, send) == (first, 90), "news of the server that was started anew is taken in"
    stubs[first].alive = False
    with pytest.raises(LookupError):
        advisor.serve(PROMPT, send)
    with pytest.raises(ZeroDivisionError):
        advisor.back(first)
        advisor.serve(PROMPT, lambda advice: 1 // 0)
    assert not any(advisor.queued.values()), "no load is left behind"
    for follower, sender in zip(followers.values(), senders.values(), strict=True):
        follower.close()
        sender.socket.close(linger=0)


@pytest.mark.sglang
def test_follower_is_brought_what_it_missed() -> None:
    import sglang.srt.disaggregation.kv_events as events

    publisher = events.ZmqEventPublisher(
        0, endpoint="tcp://127.0.0.1:*", bind=True, replay_endpoint="tcp://127.0.0.1:*", topic="states"
    )
    endpoint, replay = publisher._local_pub_endpoint, publisher._local_replay_endpoint
    batch = lambda *items: events.EventBatch(ts=0.0, events=list(items))  # noqa: E731
    publisher.publish(batch(stored(10)))  # before anybody listens
    publisher.publish(batch(stored(40)))
    time.sleep(0.3)
    with StateFollower(endpoint, replay_endpoint=replay) as follower:
        time.sleep(0.3)
        publisher.publish(batch(removed(40)))
        assert _polled(follower, lambda: follower.index.resumable_tokens(HASHES) == 10)
        assert follower.lost_batches == 0 and len(follower.index) == 1
    publisher.shutdown()


def _polled(follower: StateFollower | SimpleNamespace, done) -> bool:
    deadline = time.monotonic() + 5
    while not done() and time.monotonic() < deadline:
        follower.poll(50)
    return done()
