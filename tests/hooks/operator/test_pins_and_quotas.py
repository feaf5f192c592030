"""Pins and quotas under thousands of hostile requests, in SGLang's own admission and scheduler's order of steps."""

from __future__ import annotations

import json
import random
import stat
from collections.abc import Callable
from typing import Any

import pytest
from engineless_cache import Driver, publish_settings
from sglang.srt.managers.schedule_batch import Req
from small_scheduler import SmallScheduler

from marconi_ext.policies.quotas import parse_quotas, quotas_in_slots
from marconi_ext.policies.table.tree_rows import row_of
from sglang_hooks.node_states import holds_state
from sglang_hooks.operator.desk import RefusedError
from sglang_hooks.operator.explain import walk
from sglang_hooks.operator.memory import ServerMemory
from sglang_hooks.operator.wishes import Wishes

SLOTS, TOKENS, REQUESTS = 60, 6_000, 4
HOSTILE = 5_000
SYSTEM = [7 + i % 91 for i in range(200)]


class Site:
    """A cache of `SLOTS` states behind SGLang's admission."""

    def __init__(self, quotas: str = "{}", seed: int = 0) -> None:
        publish_settings(64)
        driver = Driver("marconi", slots=SLOTS, tokens=TOKENS, context_tokens=TOKENS, requests=REQUESTS)
        self.cache = driver.cache
        self.mamba = self.cache.mamba
        self.mamba.runtime.reserves.set_quotas(quotas_in_slots(parse_quotas(quotas), SLOTS))
        self.rng = random.Random(seed)
        self.scheduler = SmallScheduler(driver, self.rng, 128, REQUESTS, overlap=False)

    def send(
        self, prompt: list[int], extra_key: str | None = None, answer: int = 1, adapter: str | None = None
    ) -> Req:
        self.scheduler.submit(prompt, answer, answer)
        req = self.scheduler.waiting[-1]
        req.extra_key, req.lora_id = extra_key, adapter
        if adapter is not None:  # as SGLang's own constructor
            req.extra_key = (extra_key or "") + adapter
        return req

    def settle(self) -> None:
        while not self.scheduler.idle:
            assert self.scheduler.step()

    def warm(self, prefix: list[int], extra_key: str | None = None) -> None:
        self.send([*prefix, prefix[-1]], extra_key).marconi_wishes = Wishes(keep=True)
        self.settle()

    def hostile(
        self, requests: int, key: Any = lambda _number: None, look: Callable[[], None] = lambda: None
    ) -> None:
        """Random prompts of all lengths, some that repeat and branch, many at a time. look: called after each step"""
        seen: list[list[int]] = [[1]]
        for number in range(requests):
            begin = self.rng.choice(seen)[: self.rng.randrange(300)] if self.rng.random() < 0.5 else []
            prompt = [*begin, *(self.rng.randrange(50_000) for _ in range(self.rng.randrange(1, 120)))]
            seen = [*seen[-20:], prompt]
            self.send(prompt, key(number), self.rng.randrange(1, 5))
            if len(self.scheduler.waiting) > 6:
                assert self.scheduler.step()
                look()
        self.settle()

    def holds(self, prefix: list[int], extra_key: str | None = None) -> bool:
        path, partial = walk(self.cache.tree_core, 1, prefix, extra_key, None)
        return partial is None and bool(path) and path[-1][0] == len(prefix) and holds_state(path[-1][1])

    def assert_sound(self) -> None:
        census = self.cache.slot_census()
        assert census["unaccounted"] == census["held"] == 0, census
        assert self.cache.census.totals()["differences"] == 0


def pin(prompt: list[int], name: str = "system", **more: Any) -> dict[str, Any]:
    return {"name": name, "prompt": prompt, **more}


def test_pins_and_quotas_hold_under_hostile_requests() -> None:
    site = Site('{"chat": {"floor": 0.2}, "batch": {"ceiling": 0.3}, "*": {"ceiling": 0.5}}')
    chats = [[number, *SYSTEM[:60]] for number in range(100, 106)]
    for chat in chats:
        site.warm(chat, "chat")
    assert 6 <= site.mamba.runtime.reserves.states_by_tenant()["chat"] <= 12, "they stay below their floor"
    other = [5, *SYSTEM]
    for prefix in (SYSTEM, other):
        site.warm(prefix)
    site.mamba.pins.pin(pin(SYSTEM))
    most = {"batch": 0, "*": 0}

    def look() -> None:
        counts = site.mamba.runtime.reserves.states_by_tenant()
        most.update({name: max(most[name], counts[name]) for name in most})

    for round_number in range(10):
        strangers = f"stranger {round_number}"
        site.hostile(
            HOSTILE // 10,
            lambda number, name=strangers: f"{name} {number}" if number % 3 == 0 else "batch",
            look,
        )
    assert all(site.holds(chat, "chat") for chat in chats)
    assert 10 < most["batch"] <= 18 and 10 < most["*"] <= 30, most
    assert site.holds(SYSTEM) and not site.holds(other)
    report = site.mamba.pins.answer({})
    assert report["states"] == 1 and report["yielded"] == 0 and not any(report["ended"].values())
    site.assert_sound()


def test_an_adapter_does_not_change_whose_states_they_are() -> None:
    """SGLang appends a LoRA adapter's id to the key by which a tenant is known."""
    site = Site('{"batch": {"ceiling": 0.1}, "salted": {"ceiling": 0.1}}')
    for number in range(30):
        site.send([number, *SYSTEM[:50]], "batch", adapter="a1" * 16)
        site.send([number, *SYSTEM[60:99]], adapter="a1" * 16).cache_salt = "salted"
    site.settle()
    assert site.mamba.runtime.reserves.states_by_tenant() == {"*": 0, "batch": 6, "salted": 6}
    site.assert_sound()


def test_a_full_pool_takes_what_is_warmed_whatever_it_is_worth() -> None:
    site = Site()
    site.hostile(150)
    for number in range(8):
        site.warm(prefix := [number, *SYSTEM[:40]])
        assert site.holds(prefix)
    site.assert_sound()


def test_what_is_neither_pinned_nor_has_a_quota_goes() -> None:
    site = Site()
    chats = [[number, *SYSTEM[:60]] for number in range(100, 106)]
    for chat in chats:
        site.warm(chat, "chat")
    site.warm(SYSTEM)
    site.mamba.pins.pin(pin(SYSTEM))
    site.mamba.pins.unpin({"name": "system"})
    site.hostile(500, lambda number: "batch" if number % 3 else f"stranger {number}")
    assert not any(site.holds(chat, "chat") for chat in chats) and not site.holds(SYSTEM)
    site.assert_sound()


def test_a_pin_yields_to_a_request_that_needs_all_of_the_memory() -> None:
    site = Site()
    site.warm(SYSTEM)
    site.mamba.pins.pin(pin(SYSTEM))
    site.send([9] * (TOKENS - 50))
    site.settle()
    assert site.mamba.pins.answer({})["ended"]["evicted"] == 1
    site.assert_sound()


def test_what_cannot_be_pinned_is_refused_with_the_reason() -> None:
    site = Site()
    with pytest.raises(RefusedError, match="no state at token 200"):
        site.mamba.pins.pin(pin(SYSTEM))
    prefixes = [[number, *SYSTEM[:30]] for number in range(8)]
    for prefix in prefixes:
        site.warm(prefix)
    for number, prefix in enumerate(prefixes[:6]):
        site.mamba.pins.pin(pin(prefix, str(number)))
    with pytest.raises(RefusedError, match="7 states, and may hold 6"):
        site.mamba.pins.pin(pin(prefixes[6], "one more"))
    site.mamba.pins.pin(pin(prefixes[6], "0"))  # the name moves
    site.warm([*range(300, 900)])
    site.mamba.pins.unpin({"name": "1"})
    with pytest.raises(RefusedError, match="tokens, and may hold 600"):
        site.mamba.pins.pin(pin([*range(300, 900)], "long"))
    with pytest.raises(RefusedError, match="no pin has the name 'x'"):
        site.mamba.pins.unpin({"name": "x"})
    assert len(site.mamba.pins.unpin({"all": True})["pins"]) == 0
    assert site.mamba.runtime.reserves.reserved == 0


def test_expiry_and_a_flush_end_a_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()
    site.warm(SYSTEM)
    site.mamba.pins.pin(pin(SYSTEM, seconds=60))
    site.mamba.pins.pin(pin(SYSTEM, "for ever"))
    from sglang_hooks.operator import pins

    now = pins.time.monotonic()
    monkeypatch.setattr(pins.time, "monotonic", lambda: now + 61)
    report = site.mamba.pins.answer({})
    assert [one["name"] for one in report["pins"]] == ["for ever"] and report["ended"]["expired"] == 1
    assert site.mamba.runtime.reserves.reserved == 1
    site.cache.reset()
    assert site.mamba.pins.answer({})["ended"]["flushed"] == 1 and site.mamba.runtime.reserves.reserved == 0


def test_memory_keeps_inner_prefixes_alone(tmp_path: Any) -> None:
    """And what it keeps, sent again in its order, gives the same states in an empty cache."""
    site = Site()
    for number in range(6):
        site.send([*SYSTEM, *(1_000 + number * 50 + i for i in range(30))], "tenant")
        site.settle()
    file = tmp_path / "memory.jsonl"
    list(ServerMemory(site.cache.mamba.records, file, 8).write())
    (kept,) = map(json.loads, file.read_text().splitlines())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert kept["input_ids"] == SYSTEM and kept["extra_key"] == "tenant"
    fresh = Site()
    fresh.warm(kept["input_ids"], "tenant")
    assert fresh.holds(SYSTEM, "tenant")


def test_rows_of_pins_are_not_mistaken_for_others() -> None:
    """A pinned state that had to go, whose row another state has since: the pin is over, the other isn't kept."""
    site = Site()
    site.warm(SYSTEM)
    site.mamba.pins.pin(pin(SYSTEM))
    path, _ = walk(site.cache.tree_core, 1, SYSTEM, None, None)
    _, held = path[-1]
    site.send([9] * (TOKENS - 50))
    site.settle()
    assert row_of(held) == -1
    site.hostile(50)
    assert not site.mamba.runtime.table.reserved.any() and site.mamba.runtime.reserves.reserved == 0
