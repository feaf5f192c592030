"""The shorter ways through the tree lead where stock's do: same hits, same decisions, same tree, after any script.

Two caches of ours, without an engine: one walks as SGLang does, the other as it may. A random script of requests,
up to three of which run at a time, some aborted, some sharing prefixes that end in the middle of edges.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator
from typing import Any

import engineless_cache
import pytest
from engineless_cache import Driver
from tree_nodes import nodes_of

from sglang_hooks.radix.tree_core import MarconiTreeCore, depth_of

SIZES = {"context_tokens": 256, "requests": 8}
POOLS = [{"slots": 200, "tokens": 20_000}, {"slots": 12, "tokens": 900}, {"slots": 40, "tokens": 700}]


@pytest.fixture(scope="module", autouse=True)
def settings() -> None:
    engineless_cache.publish_settings()


@pytest.fixture(params=POOLS, ids=lambda sizes: f"{sizes['slots']} slots, {sizes['tokens']} tokens")
def drivers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Driver]:
    walks, shortcuts = (Driver("marconi", **request.param, **SIZES) for _ in range(2))
    monkeypatch.setattr(
        MarconiTreeCore, "plain", property(lambda core: core is shortcuts.cache.tree_core), raising=True
    )
    return [walks, shortcuts]


def script(seed: int) -> Iterator[tuple[str, Any]]:
    """("match", prompt), then ("prefill", which), then ("finish", (which, output, keep))."""
    rng = random.Random(seed)
    waiting: list[array] = []
    running: list[array] = []
    histories = [array("q", rng.choices(range(50), k=40))]
    for _ in range(400):
        if len(waiting) + len(running) < 3 and rng.random() < 0.5:
            old = rng.choice(histories)
            prompt = old[: rng.randrange(1, len(old) + 1)] + array("q", rng.choices(range(50), k=20))
            waiting.append(prompt[-200:] if rng.random() < 0.1 else prompt[:200])
            yield "match", waiting[-1]
        elif waiting and rng.random() < 0.7:
            which = rng.randrange(len(waiting))
            running.append(waiting.pop(which))
            yield "prefill", which
        elif running:
            which = rng.randrange(len(running))
            output = array("q", rng.choices(range(50), k=rng.randrange(2, 12)))
            keep = rng.random() < 0.85
            prompt = running.pop(which)
            if keep:
                histories.append(prompt + output)
            yield "finish", (which, output, keep)


def observe(driver: Driver) -> dict[str, Any]:
    cache = driver.cache
    core, mamba = cache.tree_core, cache.mamba.component_type
    tree = {
        (
            depth_of(node),
            tuple(node.key.token_ids),
            len(node.children),
            node in core.evictable_device_leaves,
            node.component_data[mamba].value is not None,
            *(node.component_data[kind].lock_ref for kind in cache.tree_components),
        )
        for node in nodes_of(cache)
    }
    return {
        "tree": tree,
        "slots": cache.slot_census(),
        "kv": cache.kv_census(),
        "counts": dict(cache.mamba.runtime.counts),
        "digest": cache.mamba.runtime.digest(),
        "counters": dict(cache.mamba.ledger.counters),
        "stats": cache.mamba.stats.snapshot(),
        "full": (cache.full_evictable_size(), cache.full_protected_size()),
        "mamba": (cache.mamba_evictable_size(), cache.mamba_protected_size()),
    }


@pytest.mark.parametrize("seed", range(4))
def test_shortcuts_change_nothing(drivers: list[Driver], seed: int) -> None:
    waiting: list[list] = [[], []]
    running: list[list] = [[], []]
    for number, (step, what) in enumerate(script(seed)):
        for driver, matched, started in zip(drivers, waiting, running, strict=True):
            if step == "match":
                matched.append(driver.match(number, what, 12))
            elif step == "prefill":
                started.append(matched.pop(what))
                driver.prefill(started[-1])
            else:
                which, output, keep = what
                driver.finish(started.pop(which), output, keep=keep)
        walked, short = (observe(driver) for driver in drivers)
        assert walked == short, f"step {number}: {step}"
        for stock, ours in zip(*running, strict=True):
            assert stock.prefix_len == ours.prefix_len
            assert stock.kv.cache_protected_len == ours.kv.cache_protected_len
            locked = [
                d.cache.tree_core.node_by_id(r.lock.node) for d, r in zip(drivers, (stock, ours), strict=True)
            ]
            assert depth_of(locked[0]) == depth_of(locked[1])
            for driver, req in zip(drivers, (stock, ours), strict=True):
                core, row = driver.cache.tree_core, driver.cache.req_to_token_pool.req_to_token
                held = core.collect_full_device_indices(req.lock.node, core.root_node.id)
                assert row[req.kv.req_pool_idx, : len(held)].tolist() == held.tolist()
    for driver, matched, started in zip(drivers, waiting, running, strict=True):
        for req in matched:
            driver.prefill(req)
        for req in (*started, *matched):
            driver.finish(req, array("q", [1, 2]))
        driver.cache.sanity_check()
        assert driver.cache.slot_census()["unaccounted"] == 0
        kv = driver.cache.kv_census()
        assert kv["free"] + kv["cached"] == kv["pool"]
