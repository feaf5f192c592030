"""A true upper bound on what any policy can reuse from a pool of state slots, with KV for everything.

To serve request i from a state at depth d, a slot must have held that state since the latest request before i
that went through those d tokens, whichever policy saved it, wherever it saves. So each request picks at most one
interval out of a few (the deeper, the longer ago), worth d tokens, and no more intervals than slots may overlap.
Two that overlap never are one state: the earlier request would have gone through the later one's prefix, too.

The best such choice is bounded from above by any price of a slot at each moment (Lagrange): slots × prices, plus
what each request gains at best from an interval after paying for it. Prices are improved by subgradient steps;
each step's value is a bound, and the lowest is returned. Requests run one at a time and hold no slot meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from marconi_ext.simulator.radix_tree import RadixTree
from marconi_ext.traces import Request

STEPS = 1000
PATIENCE = 20  # steps without a better bound, until steps get smaller


@dataclass(frozen=True)
class Intervals:
    """Ways to serve requests: int64[N] columns, sorted by request; `depth` in tokens, `since` a request's index."""

    request: np.ndarray
    since: np.ndarray
    depth: np.ndarray
    num_requests: int


def intervals(requests: Sequence[Request]) -> Intervals:
    """For each request, the depths from which it could be served, each as deep as its latest passage allows."""
    tree, found = RadixTree(), []
    for i, request in enumerate(requests):
        look = tree.lookup(request.input_ids[:-1])
        steps = [(node.depth_tokens, node.last_tick) for node in look.path]
        if look.partial is not None:
            steps.append((look.kv_tokens, look.partial.last_tick))
        latest = -1
        for depth, since in reversed(steps):
            if since > latest:
                latest = since
                found.append((i, since, depth))
        done = tree.insert(np.concatenate([request.input_ids, request.output_ids[:-1]]), i)
        tree.touch(done.node, i, whole_path=True)
    columns = np.array(found, np.int64).reshape(-1, 3).T
    return Intervals(columns[0], columns[1], columns[2], len(requests))


def upper_bound(
    ways: Intervals, slots: int, worth: Callable[[np.ndarray], np.ndarray] | None = None, steps: int = STEPS
) -> float:
    """No policy with so many slots saves more tokens (or more of `worth(depth)`) on these requests."""
    if len(ways.request) == 0:
        return 0.0
    value = (ways.depth if worth is None else worth(ways.depth)).astype(np.float64)
    firsts = np.flatnonzero(np.diff(ways.request, prepend=-1))
    groups = np.cumsum(np.diff(ways.request, prepend=-1) > 0) - 1
    best = float(np.maximum.reduceat(value, firsts).sum())
    price = best_price = np.zeros(ways.num_requests)  # of a slot between request t and t + 1
    target, stalled = 0.1 * best, 0
    for _ in range(steps):
        paid = np.concatenate([[0.0], np.cumsum(price)])
        gain = value - (paid[ways.request] - paid[ways.since])
        top = np.maximum(np.maximum.reduceat(gain, firsts), 0.0)
        bound = float(slots * price.sum() + top.sum())
        stalled += 1
        if bound < best * (1 - 1e-7):
            best, best_price, stalled = bound, price, 0
        elif stalled >= PATIENCE:
            target, stalled, price = target / 2, 0, best_price
            continue
        taken = np.flatnonzero((gain > 0) & (gain == top[groups]))
        taken = taken[np.diff(ways.request[taken], prepend=-1) > 0]  # one a request
        ends = np.bincount(ways.since[taken], minlength=ways.num_requests + 1)
        ends -= np.bincount(ways.request[taken], minlength=ways.num_requests + 1)
        excess = np.cumsum(ends)[:-1] - slots
        norm = float((excess * excess).sum())
        if norm == 0:
            break
        price = np.maximum(price + (bound - best + target) / norm * excess, 0.0)
    return best
