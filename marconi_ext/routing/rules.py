"""Rules that pick a server for a request; the simulation and the advisor share them.

A rule sees, of each server, the tokens of the prompt that it could reuse and its load. Ties go to the lower load, then
to the lower number.
"""

from __future__ import annotations

from collections.abc import Sequence

MATCH_SHARE = 0.3  # sglang-router's --cache-threshold: below it a prefix match decides nothing
MEMORY_REQUESTS = 16  # a server, of what it saved lately
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
        it needs room of its own
    room_tokens: what room costs on a server, see `Demand`. Without it all sessions that share a prefix would crowd
        where that is, and push each other out, while other servers stay empty
    """
    work = [
        queued + prompt_tokens - resumed + (0 if on else room)
        for queued, resumed, on, room in zip(
            queued_tokens, resumable_tokens, goes_on, room_tokens, strict=True
        )
    ]
    return min(range(len(work)), key=lambda server: (work[server], queued_tokens[server], server))


class Demand:
    """What room for a new session's states costs on each server: the mean depth of all servers' states, times how
    much more the server is asked for room than the others are.

    A state that is pushed out costs its depth when its session comes back, if it does. The more a server saves, the
    sooner its states are pushed out, and the likelier that is. Only differences between servers matter to the rule.
    """

    def __init__(self, servers: int) -> None:
        self._lately = [0.0] * servers
        self._seen = [0] * servers
        self._keeps = 1 - 1 / (MEMORY_REQUESTS * servers)

    def saved(self, totals: Sequence[int]) -> None:
        """Take in how many states each server has saved in all; call it once a request."""
        for server, total in enumerate(totals):
            grown = (
                total - self._seen[server] if total >= self._seen[server] else total
            )  # it was started anew
            self._lately[server] = self._lately[server] * self._keeps + grown
            self._seen[server] = total

    def prices(self, mean_depth_tokens: float) -> list[float]:
        """Tokens that room costs on each server."""
        mean = sum(self._lately) / len(self._lately)
        return [mean_depth_tokens * lately / mean if mean else 0.0 for lately in self._lately]


def longest_prefix(
    prompt_tokens: int, matched_tokens: Sequence[int], open_requests: Sequence[int], sizes: Sequence[int]
) -> int:
    """As sglang-router's cache_aware: the longest match among prompts sent, unless servers are far out of balance.

    sizes: tokens that each server was sent, less what repeats: with a short match the smallest gets the request
    """
    servers = range(len(sizes))
    most, least = max(open_requests), min(open_requests)
    if most - least > ABSOLUTE_GAP and most > RELATIVE_GAP * least:
        return min(servers, key=lambda server: (open_requests[server], server))
    best = max(servers, key=lambda server: (matched_tokens[server], -server))
    if matched_tokens[best] > MATCH_SHARE * prompt_tokens:
        return best
    return min(servers, key=lambda server: (sizes[server], server))
