"""Rules that pick a server for a request; the simulation and the advisor share them.

A rule sees, of each server, the tokens of the prompt that it could reuse and its load. Ties go to the lower load, then
to the lower number.
"""

from __future__ import annotations

from collections.abc import Sequence

MATCH_SHARE = 0.3  # sglang-router's --cache-threshold: below it a prefix match decides nothing
MEMORY_REQUESTS = 48  # a server, of where conversations began
ABSOLUTE_GAP, RELATIVE_GAP = 64, 1.5  # its --balance-abs-threshold and --balance-rel-threshold


ENDS = frozenset({"last-token", "prompt-end", "input-end", "in-answer"})
"""Kinds of states from which a conversation goes on: the next state takes their place."""


def least_work(
    prompt_tokens: int,
    resumable_tokens: Sequence[int],
    goes_on: Sequence[bool],
    queued_tokens: Sequence[float],
    room_tokens: Sequence[float],
) -> int:
    """The server with the least work, all in tokens: its queue, what it can't resume, and the room that it must make.

    goes_on: whether the state that a server would resume ends a conversation. What is saved then takes its place; else
        it needs room of its own, and so does the shared prefix where another server has more of it
    room_tokens: what room for a state costs on a server, see `Demand`
    """
    shared = max(
        (resumed for resumed, on in zip(resumable_tokens, goes_on, strict=True) if not on), default=0
    )
    work = [
        queued + prompt_tokens - resumed + (0 if on else room * (1 + (resumed < shared)))
        for queued, resumed, on, room in zip(
            queued_tokens, resumable_tokens, goes_on, room_tokens, strict=True
        )
    ]
    return min(range(len(work)), key=lambda server: (work[server], queued_tokens[server], server))


def begins_anew(resumable_tokens: Sequence[int], goes_on: Sequence[bool]) -> bool:
    """Whether no server has the end of the request's conversation: it is new, or its states have left."""
    deepest = max(resumable_tokens)
    return not any(on and resumed == deepest for resumed, on in zip(resumable_tokens, goes_on, strict=True))


class Demand:
    """What room for a state costs on each server: the mean depth of all servers' states, times how many of the latest
    conversations began there, against the mean.

    A state that is pushed out costs its depth when its conversation comes back, if it does; that is the likelier, the
    more conversations share the server's slots. Turns don't count: a state takes the place of the turn before.
    """

    def __init__(self, servers: int) -> None:
        self._lately = [0.0] * servers
        self._keeps = 1 - 1 / (MEMORY_REQUESTS * servers)

    def sent(self, server: int, *, begins: bool) -> None:
        """Note a request. begins: whether no server had the end of its conversation"""
        self._lately = [lately * self._keeps for lately in self._lately]
        self._lately[server] += begins

    def forget(self, server: int) -> None:
        """The server has lost its states."""
        self._lately[server] = 0.0

    def prices(self, mean_depth_tokens: float) -> list[float]:
        """Tokens that room costs on each server."""
        mean = sum(self._lately) / len(self._lately)
        return [mean_depth_tokens * lately / mean if mean else 0.0 for lately in self._lately]


def longest_prefix(
    prompt_tokens: int, matched_tokens: int, matched: int, open_requests: Sequence[int]
) -> int:
    """As sglang-router 0.3.2's cache_aware: to the server with the longest match among prompts sent; to the one with
    fewest requests open where that match is short, or servers are far out of balance.

    matched: the server of that match. Where several share it, the router sticks to the one that had it first
    """
    most, least = max(open_requests), min(open_requests)
    balanced = most - least <= ABSOLUTE_GAP or most <= RELATIVE_GAP * least
    if balanced and matched_tokens > MATCH_SHARE * prompt_tokens:
        return matched
    return open_requests.index(least)
