"""A trace in memory, with what an unlimited cache could have reused of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from marconi_ext.simulator.radix_tree import RadixTree
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
    """Read all requests; the ideal is that of `results.ideal`: at most prompt − 1 tokens, answers less their last."""
    kept = list(requests)
    tree, ideal = RadixTree(), 0
    for tick, request in enumerate(kept):
        look = tree.lookup(request.input_ids[:-1])
        ideal += look.kv_tokens
        start = look.path[-1] if look.path else None
        tree.insert(np.concatenate([request.input_ids, request.output_ids[:-1]]), tick, start)
    return Workload(name, seed, kept, np.array([len(r.input_ids) for r in kept], np.int64), ideal)
