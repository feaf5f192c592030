"""A small trace of two kinds of traffic."""

from __future__ import annotations

from marconi_ext.traces import Request, synthetic


def mixed_trace() -> list[Request]:
    """120 requests, by turns of an agent's conversations and of a tree search."""
    agent = synthetic("agent", seed=1, sessions=8)
    search = synthetic("tree-search", seed=1, sessions=4)
    return [request for pair in zip(agent, search, strict=False) for request in pair][:120]
