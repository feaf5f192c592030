"""State events of two real servers: what they say equals each server's tree, and the advisor finds the reuse."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from live_server import LiveServer, running

from marconi_ext.routing.advisor import Advisor
from marconi_ext.routing.block_hashes import block_hashes
from marconi_ext.routing.follower import StateFollower
from marconi_ext.servers.server import free_port
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
        agreed = []
        for _turn in range(4):
            for chat in chats:
                for follower in followers.values():
                    follower.poll(300)
                advice = advisor.pick(np.array(chat))
                advisor.started(advice)
                answer = live[advice.server].generate(chat, 6)
                advisor.ended(advice)
                agreed.append((answer.cached_tokens, advice.resumable_tokens))
                chat += [*answer.output_ids, *rng.integers(0, 4_096, 20).tolist()]
        for name, follower in followers.items():
            settled(follower)
            assert follower.lost_batches == 0
            assert follower.index._depths == states_in_tree(live[name])
        assert [cached for cached, _ in agreed] == [said for _, said in agreed]
        assert sum(cached > 0 for cached, _ in agreed) > 15
        first.server.flush_cache()
        settled(followers["first"])
        assert len(followers["first"].index) == 0 and states_in_tree(first) == {}
        for follower in followers.values():
            follower.close()
