"""What `soak.py --tenants` adds: a batch tenant that floods, a chat tenant with a floor, and prefixes that are pinned.

Pins and quotas must hold through all that a soak does: the batch never has more states than its ceiling, the chat never
fewer than its floor once it has had so many, and a pinned prefix is reused to the token whenever it is sent.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import numpy as np

from marconi_ext.errors import CheckFailedError
from marconi_ext.servers.server import Server
from marconi_ext.watch.prompts import Prompt
from marconi_ext.watch.server import WatchedServer
from marconi_ext.watch.warming import warm_prefixes

FLOOR, CEILING = 0.3, 0.4
QUOTAS = {"chat": {"floor": FLOOR}, "batch": {"ceiling": CEILING}}
KEYS, SHARES = ("chat", "batch", None), (0.25, 0.6, 0.15)
PREFIX_TOKENS = (40, 64, 91)
LOOK_EVERY_S = 1.0


def flags() -> list[str]:
    return ["--marconi-quotas", json.dumps(QUOTAS)]


class Tenants:
    """Whose request is whose, and whether every promise is kept. slots: of the pool"""

    def __init__(self, live: Server, slots: int, vocabulary: int, seed: int) -> None:
        self._server, self._watched = live, WatchedServer(live.url)
        self._floor, self._ceiling = int(FLOOR * slots), int(CEILING * slots)
        self._rng = np.random.default_rng(seed)
        self._prefixes = [
            Prompt(f"prefix-{tokens}", {"input_ids": self._rng.integers(1_000, vocabulary, tokens).tolist()})
            for tokens in PREFIX_TOKENS
        ]
        self._flushes, self._floor_reached = 0, False
        self.counts: Counter[str] = Counter()
        self.fewest_chat, self.most_batch = slots, 0

    def key(self) -> dict[str, str]:
        """A request's `extra_key`, as a part of its body."""
        key = self._rng.choice(len(KEYS), p=SHARES)
        return {} if KEYS[key] is None else {"extra_key": str(KEYS[key])}

    def flush(self) -> None:
        """Which takes all states and ends all pins; pins again."""
        self._flushes, self._floor_reached = self._flushes + 1, False
        self._server.flush_cache()
        self.pin()

    def pin(self) -> None:
        """Send the prefixes, and keep them."""
        for sent in warm_prefixes(self._watched, self._prefixes):
            self._watched.order({"do": "pin", "name": sent["name"], "prompt": sent["prompt"]})

    def check_pins(self) -> None:
        """While nothing runs. Raises CheckFailedError for a pin that is gone, or is reused by less than it holds."""
        (report,) = self._watched.order({"do": "pins"})
        held = {pin["name"] for pin in report["pins"]}
        for sent in warm_prefixes(self._watched, self._prefixes):
            if sent["name"] not in held or sent["reused_tokens"] != sent["tokens"]:
                raise CheckFailedError(f"a pinned prefix isn't kept: {sent}, {report}")
            self.counts["pinned_prefixes_reused"] += 1
        self.counts["yielded"] = report["yielded"]

    async def watch(self) -> None:
        """Look at the tenants' states again and again while requests run."""
        while True:
            flushes, section = self._flushes, await asyncio.to_thread(self._section)
            if flushes == self._flushes:
                self.check_quotas(section)
            await asyncio.sleep(LOOK_EVERY_S)

    def _section(self) -> dict[str, Any]:
        section: dict[str, Any] = self._server.info()["internal_states"][0]["marconi"]
        return section

    def check_quotas(self, section: dict[str, Any]) -> None:
        """Raises CheckFailedError: more than the ceiling, or fewer than a floor that was reached."""
        states = section["tenants"]
        self.counts["looks"] += 1
        self.most_batch = max(self.most_batch, states["batch"])
        if states["batch"] > self._ceiling:
            raise CheckFailedError(f"the batch has more states than {self._ceiling}: {states}")
        if self._floor_reached:
            self.fewest_chat = min(self.fewest_chat, states["chat"])
            if states["chat"] < self._floor:
                raise CheckFailedError(f"the chat has fewer states than {self._floor}: {states}")
        self._floor_reached |= states["chat"] >= self._floor

    def report(self) -> dict[str, int]:
        """floor, ceiling: in states; fewest_chat: once the floor was reached"""
        return {
            **self.counts,
            "floor": self._floor,
            "fewest_chat": self.fewest_chat,
            "ceiling": self._ceiling,
            "most_batch": self.most_batch,
        }
