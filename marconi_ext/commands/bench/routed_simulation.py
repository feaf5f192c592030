"""What the simulator says of the requests that real servers have served one at a time, in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from marconi_ext.commands.verify.run import simulator_of
from marconi_ext.policies.table.checkpoints import CheckpointTable
from marconi_ext.profiles import ModelProfile
from marconi_ext.simulator.fleet import ROUTINGS, Fleet
from marconi_ext.simulator.live_rules import LiveRules
from marconi_ext.simulator.radix_tree import RadixTree
from marconi_ext.simulator.simulator import Served
from marconi_ext.traces import Request


@dataclass(frozen=True)
class Routed:
    """A request as it was served: at which server, and how many tokens that reused."""

    request: Request
    server: int
    reused_tokens: int


class RoutedSimulation:
    """The servers' own rules, from what each says of itself before its first request; one run follows another, and
    what their policies learn stays, as it does on the servers.

    sections: of each server's /server_info, the extension's
    """

    def __init__(self, sections: Sequence[dict[str, Any]], profile: ModelProfile) -> None:
        self._rules = [simulator_of(section) for section in sections]
        self._profile = profile

    def play(self, router: str, requests: Sequence[Routed]) -> dict[str, Any]:
        """One run on empty caches. Where the simulation has the router's rule, it routes by itself.

        Returns: the hit rate, and how many requests differ from what the server reused
        """
        caches = []
        for rules in self._rules:
            rules.flush()
            caches.append(_Cache(rules))
        fleet = Fleet(caches, router, self._profile, "h100") if router in ROUTINGS else None
        hits = [
            (
                fleet.serve(one.request).hit_tokens
                if fleet
                else caches[one.server].serve(one.request).hit_tokens
            )
            for one in requests
        ]
        prompt_tokens = sum(len(one.request.input_ids) for one in requests)
        return {
            "simulated_hit_rate": sum(hits) / prompt_tokens,
            "simulated_otherwise": sum(
                hit != one.reused_tokens for hit, one in zip(hits, requests, strict=True)
            ),
        }


class _Cache:
    """As `Fleet` asks of one."""

    def __init__(self, rules: LiveRules) -> None:
        self._rules = rules

    @property
    def tree(self) -> RadixTree:
        return self._rules.tree

    @property
    def table(self) -> CheckpointTable:
        return self._rules.runtime.table

    def serve(self, request: Request) -> Served:
        return self._rules.serve(request.input_ids, request.output_ids)
