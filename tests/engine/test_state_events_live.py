"""State events of two real servers: what they say equals each server's tree, and the advisor finds the reuse."""

from __future__ import annotations

import json
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq
from live_server import LiveServer, running

from marconi_ext.commands.bench.routed_simulation import Routed, RoutedSimulation
from marconi_ext.profiles import ModelProfile, profile_from_config
from marconi_ext.routing.advisor import Advisor
from marconi_ext.routing.block_hashes import block_hashes
from marconi_ext.routing.follower import StateFollower
from marconi_ext.servers.server import free_port
from marconi_ext.traces import Request
from marconi_ext.watch.server import WatchedServer

pytestmark = pytest.mark.engine


def states_in_tree(live: LiveServer) -> dict[int, int]:
    """Depth by hash of the block at which each state lies, from the server's own tree."""
    (tree,) = WatchedServer(live.server.url).tree(with_tokens=True)
    nodes = tree["nodes"]
    tokens: dict[int, list[int]] = {}
    found = {}
    for node in nodes:
        tokens[node["id"]] = tokens.get(node["parent"], []) + node.get("tokens", [])
        if node["state"] is not None:
            *_, last = block_hashes(np.array(tokens[node["id"]]), 1)
            found[last] = node["depth_tokens"]
    return found


def profile_of(model: Path) -> ModelProfile:
    return profile_from_config(json.loads((model / "config.json").read_text()))


def settled(follower: StateFollower) -> None:
    while follower.poll(1_500):
        pass


def test_two_servers_and_an_advisor(model: Path) -> None:
    rng = np.random.default_rng(0)
    ports = [free_port(), free_port()]
    options = [
        {
            "marconi_events": "states",
            "marconi_expose_tokens": "true",
            "marconi_events_config": json.dumps(
                {"publisher": "zmq", "endpoint": f"tcp://*:{port}", "topic": "states"}
            ),
            "max_mamba_cache_size": 24,
            "max_running_requests": 2,
        }
        for port in ports
    ]
    with running(model, **options[0]) as first, running(model, **options[1]) as second:
        live = {"first": first, "second": second}
        followers = {
            name: StateFollower(f"tcp://127.0.0.1:{port}") for name, port in zip(live, ports, strict=True)
        }
        advisor = Advisor(followers)
        time.sleep(1)
        system = rng.integers(0, 4_096, 150)
        chats = [[*system[:120], *rng.integers(0, 4_096, 30)] for _ in range(6)]
        agreed, routed = [], []
        simulation = RoutedSimulation([one.marconi() for one in live.values()], profile_of(model))
        for turn in range(4):
            for number, chat in enumerate(chats):
                for follower in followers.values():
                    follower.poll(300)
                advice = advisor.pick(np.array(chat))
                advisor.started(advice)
                answer = live[advice.server].generate(chat, 6)
                advisor.ended(advice)
                agreed.append((answer.cached_tokens, advice.resumable_tokens))
                prompt, output = np.array(chat, np.int32), np.array(answer.output_ids, np.int32)
                request = Request(str(number), turn, float(len(routed)), prompt, output)
                routed.append(Routed(request, list(live).index(advice.server), answer.cached_tokens))
                chat += [*answer.output_ids, *rng.integers(0, 4_096, 20).tolist()]
        for name, follower in followers.items():
            settled(follower)
            assert follower.lost_batches == 0
            held, index = states_in_tree(live[name]), follower.index
            assert {block: index.resumable_tokens([block]) for block in held} == held
            assert len(index) == len(held)
        assert [cached for cached, _ in agreed] == [said for _, said in agreed]
        assert sum(cached > 0 for cached, _ in agreed) > 15
        assert simulation.play("resumable", routed)["simulated_otherwise"] == 0
        first.server.flush_cache()
        deadline = time.monotonic() + 60  # of a busy machine
        while len(followers["first"].index) and time.monotonic() < deadline:
            followers["first"].poll(1_000)
        assert len(followers["first"].index) == 0 and states_in_tree(first) == {}
        for follower in followers.values():
            follower.close()


class Blocks:
    """A reader of KV events as those that exist: blocks by hash, and nothing of states."""

    def __init__(self, endpoint: str) -> None:
        self.socket = zmq.Context.instance().socket(zmq.SUB)
        self.socket.setsockopt(zmq.SUBSCRIBE, b"")
        self.socket.connect(endpoint)
        self.held: set[int] = set()
        self.next = 0

    def settle(self) -> None:
        while self.socket.poll(1_500):
            _topic, number, payload = self.socket.recv_multipart()
            assert int.from_bytes(number, "big") == self.next, "a batch was lost"
            self.next += 1
            for event in msgspec.msgpack.decode(payload)[1]:
                if event["type"] == "BlockStored":
                    assert event["parent_block_hash"] in {None, *self.held}, "a block without the one above"
                    self.held.update(event["block_hashes"])
                elif event["type"] == "BlockRemoved":
                    assert self.held >= set(event["block_hashes"]), "removed, but never stored"
                    self.held.difference_update(event["block_hashes"])
                else:
                    self.held.clear()


def blocks_in_tree(live: LiveServer, page: int) -> tuple[set[int], int]:
    """(hashes of all blocks with a state at or below their end, KV tokens of the whole tree)"""
    (tree,) = WatchedServer(live.server.url).tree(with_tokens=True)
    tokens: dict[int, list[int]] = {}
    found: set[int] = set()
    total = 0
    for node in tree["nodes"]:
        tokens[node["id"]] = tokens.get(node["parent"], []) + node.get("tokens", [])
        total += node["edge_tokens"]
        if node["state"] is not None:
            found.update(block_hashes(np.array(tokens[node["id"]]), page))
    return found, total


@pytest.mark.parametrize("page", [1, 16])
def test_resumable_stream_is_what_the_tree_can_resume(model: Path, page: int) -> None:
    """After splits, evictions of states and of KV, retractions and a flush: block by block, and never too little."""
    rng = np.random.default_rng(page)
    port = free_port()
    config = {"publisher": "zmq", "endpoint": f"tcp://*:{port}", "topic": "kv"}
    options = {
        "marconi_events": "resumable",
        "kv_events_config": json.dumps(config),
        "marconi_expose_tokens": "true",
        "max_mamba_cache_size": 24,
        "max_running_requests": 6,
        "max_total_tokens": 1_600,
        "page_size": page,
    }
    env = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "7"}
    with running(model, env=env, log_level="info", **options) as live:
        reader = Blocks(f"tcp://127.0.0.1:{port}")
        time.sleep(1)
        systems = [rng.integers(0, 4_096, 100).tolist() for _ in range(3)]
        out_of_reach = []  # tokens with KV that no state makes reusable
        for round_number in range(3):
            prompts = []
            for _ in range(12):
                system = systems[rng.integers(3)]
                cut = int(rng.integers(40, 101))
                prompts.append([*system[:cut], *rng.integers(0, 4_096, int(rng.integers(5, 120))).tolist()])
            live.generate_all([(prompt, 150 if n % 3 == 0 else 4) for n, prompt in enumerate(prompts)], 6)
            reader.settle()
            expected, total = blocks_in_tree(live, page)
            assert reader.held == expected, f"round {round_number}"
            out_of_reach.append(total - len(reader.held) * page)
            for prompt in prompts[-4:]:
                said = 0
                for block in block_hashes(np.array(prompt[:-1]), page):
                    if block not in reader.held:
                        break
                    said += page
                assert said >= live.generate(prompt, 1).cached_tokens
            reader.settle()
        assert max(out_of_reach) > 0, "every block is resumable: nothing is tested"
        assert live.server.log_text().count("#retracted_reqs") > 3
        live.server.flush_cache()
        reader.settle()
        assert reader.held == set()
