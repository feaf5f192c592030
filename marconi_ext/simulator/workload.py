"""A trace in memory, with what an unlimited cache could have reused of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from marconi_ext.results.ideal import IdealCache
from marconi_ext.traces import Request


@dataclass(frozen=True)
class Workload:
    """`prompt_tokens: int64[requests]`; `ideal_tokens`: total prompt tokens that unlimited KV would have given."""

    name: str
    seed: int
    requests: list[Request]
    prompt_tokens: np.ndarray
    ideal_tokens: int


def load_workload(name: str, seed: int, requests: Iterable[Request]) -> Workload:
    """Read all requests."""
    kept, cache = list(requests), IdealCache()
    ideal = sum(cache.serve(request).ideal_tokens for request in kept)
    return Workload(name, seed, kept, np.array([len(r.input_ids) for r in kept], np.int64), ideal)
