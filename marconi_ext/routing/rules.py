"""Rules that pick a server for a request; the simulation and the advisor share them.

A rule sees, of each server, the tokens of the prompt that it could reuse and its load. Ties go to the lower load, then
to the lower number.
"""

from __future__ import annotations

from collections.abc import Sequence

MATCH_SHARE = 0.3  # sglang-router's --cache-threshold: below it a prefix match decides nothing
ABSOLUTE_GAP, RELATIVE_GAP = 64, 1.5  # its --balance-abs-threshold and --balance-rel-threshold


def least_work(
    prompt_tokens: int,
    resumable_tokens: Sequence[int],
    queued_tokens: Sequence[float],
    displaced_tokens: Sequence[float],
) -> int:
    """The server with the least work, all in tokens: its queue, what it can't resume, and what it would lose.

    displaced_tokens: a server that is full evicts a state for each that it saves; so many tokens are then prefilled
    again. Without this price all sessions that share a prefix would crowd where it is, while other servers stay empty.
    """
    work = [
        queued + prompt_tokens - resumed + displaced
        for queued, resumed, displaced in zip(queued_tokens, resumable_tokens, displaced_tokens, strict=True)
    ]
    return min(range(len(work)), key=lambda server: (work[server], queued_tokens[server], server))


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
