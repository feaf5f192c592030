"""Advises a gateway which server to send a request to: the one that has least to prefill before its first token.

`pick` never fails for want of news: a server of which nothing is known counts as one that can resume nothing, and with
no news at all the least loaded is picked. Servers that the gateway found dead are left out with `lost`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from marconi_ext.routing.block_hashes import block_hashes
from marconi_ext.routing.rules import Demand, begins_anew, least_work
from marconi_ext.routing.state_index import StateIndex

Answer = TypeVar("Answer")


class Source(Protocol):
    """What an advisor follows; `StateFollower` is one."""

    index: StateIndex

    def poll(self, timeout_ms: int = 0) -> int:
        """Take in what has come."""


@dataclass(frozen=True)
class Advice:
    """server: its name; resumable_tokens: of the prompt, there; tokens_to_prefill: the rest

    begins: whether no server had the end of its conversation
    """

    server: str
    resumable_tokens: int
    tokens_to_prefill: int
    begins: bool = False


class Advisor:
    """sources: by the server's name; page_tokens: as the servers are started with. Not thread-safe.

    The load is what this advisor has sent and not heard the end of: call `started` and `ended` around each request.
    queued: tokens to prefill, by server
    """

    def __init__(self, sources: dict[str, Source], page_tokens: int = 1) -> None:
        if not sources:
            raise ValueError("sources: no server to choose from")
        self._sources = dict(sources)
        self._page = page_tokens
        self.queued = dict.fromkeys(sources, 0)
        self._dead: set[str] = set()
        self._number = {name: number for number, name in enumerate(sources)}
        self._demand = Demand(len(sources))

    def pick(self, prompt: np.ndarray, *, cache_salt: str | None = None) -> Advice:
        """The server for a prompt `int[L]`. Raises LookupError where every server is lost."""
        names = [name for name in self._sources if name not in self._dead]
        if not names:
            raise LookupError("every server is lost")
        for name in names:
            self._sources[name].poll()
        hashes = list(block_hashes(prompt[:-1], self._page, cache_salt=cache_salt))
        resumable, goes_on = zip(*(self._sources[name].index.resume(hashes) for name in names), strict=True)
        queued = [self.queued[name] for name in names]
        best = least_work(len(prompt), resumable, goes_on, queued, self._room(names))
        begins = begins_anew(resumable, goes_on)
        return Advice(names[best], resumable[best], len(prompt) - resumable[best], begins)

    def _room(self, names: list[str]) -> list[float]:
        """What room for a state costs on each of these servers."""
        every = [source.index for source in self._sources.values()]
        states = sum(map(len, every))
        prices = self._demand.prices(sum(index.depth_sum for index in every) / states if states else 0.0)
        by_name = dict(zip(self._sources, prices, strict=True))
        return [by_name[name] for name in names]

    def serve(
        self,
        prompt: np.ndarray,
        send: Callable[[Advice], Answer],
        *,
        cache_salt: str | None = None,
        lost_on: tuple[type[Exception], ...] = (ConnectionError,),
    ) -> Answer:
        """Pick a server and `send` the request there; where that raises one of `lost_on`, the server is lost, and the
        request goes to the next. Raises LookupError where every server is lost, and whatever else `send` raises.

        A gateway that streams answers must not count a server as lost once a part of the answer has gone out.
        """
        while True:
            advice = self.pick(prompt, cache_salt=cache_salt)
            self.started(advice)
            try:
                return send(advice)
            except lost_on:
                self.lost(advice.server)
            finally:
                self.ended(advice)

    def started(self, advice: Advice) -> None:
        """The request was sent."""
        self.queued[advice.server] += advice.tokens_to_prefill
        self._demand.sent(self._number[advice.server], begins=advice.begins)

    def ended(self, advice: Advice) -> None:
        """Its first token came, or it failed."""
        self.queued[advice.server] = max(0, self.queued[advice.server] - advice.tokens_to_prefill)

    def lost(self, server: str) -> None:
        """The server doesn't answer: no request goes there until `back`."""
        self._dead.add(server)
        self.queued[server] = 0
        self._demand.forget(self._number[server])
        self._sources[server].index.clear()

    def back(self, server: str) -> None:
        """The server answers again."""
        self._dead.discard(server)
