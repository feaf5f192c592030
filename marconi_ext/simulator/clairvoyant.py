"""A clairvoyant eviction: a yardstick that knows all prompts to come.

It keeps the states whose next use, by a request that no deeper held state would serve, saves most per request
waited. Greedy, one use ahead: neither optimal nor a bound for admission at other points, but no online policy
was seen above it where slots are tight.
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.table.checkpoints import CheckpointTable
from marconi_ext.simulator.radix_tree import RadixTree
from marconi_ext.traces import Request


class Future:
    """For any prefix of a request, the requests whose prompts go through it (less their last token)."""

    def __init__(self, requests: list[Request]) -> None:
        self._tree = RadixTree()
        self._requests = requests
        ends = []
        for i, request in enumerate(requests):
            prompt = request.input_ids[:-1]
            ends.append(self._tree.insert(prompt, i).node if len(prompt) else None)
        for i, node in enumerate(ends):
            while node is not None and node is not self._tree.root:
                if node.record is None:
                    node.record = []
                node.record.append(i)
                node = node.parent

    def uses(self, request_index: int, depth_tokens: int) -> np.ndarray:
        """Indices, ascending, of the prompts that go through this prefix of this request's sequence."""
        request = self._requests[request_index]
        sequence = np.concatenate([request.input_ids, request.output_ids])[:depth_tokens]
        look = self._tree.lookup(sequence)
        if look.kv_tokens < depth_tokens:
            return np.empty(0, np.int64)
        node = look.partial if look.partial is not None else look.path[-1]
        return np.array(node.record, np.int64)


class Clairvoyant:
    """Ticks are request numbers from 1: request i of the trace is tick i + 1."""

    refuses: ClassVar[bool] = True
    windowed: ClassVar[bool] = False
    max_fanout: int | None = None

    def __init__(self, currency: Currency, future: Future) -> None:
        self.currency = currency
        self._future = future
        self._uses: dict[int, np.ndarray] = {}

    @property
    def by_kv(self) -> Self:
        return self

    def request(self, table: CheckpointTable, path: list[int], served: int, tick: int) -> None:
        pass

    def offered(self, table: CheckpointTable, row: int, tick: int) -> None:
        if row not in self._uses:
            self._uses[row] = self._future.uses(tick - 1, int(table.depth[row]))

    def gone(self, table: CheckpointTable, row: int, tick: int) -> None:
        pass

    def forgotten(self, table: CheckpointTable, row: int) -> None:
        self._uses.pop(row, None)

    def scores(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
        below: dict[int, list[int]] = {}
        for row in rows.tolist():
            below.setdefault(int(table.owner[row]), []).append(row)
        wait = np.array([self._wait(row, below.get(row, []), tick) for row in rows.tolist()])
        worth = self.currency.worth(table.depth[rows], table.above[rows])
        return worth / wait / self.currency.cost_bytes(table, rows)

    def _wait(self, row: int, deeper: list[int], tick: int) -> float:
        """Requests until the next one that this state, and no deeper one, would serve; inf: never."""
        uses = self._uses[row]
        at = int(np.searchsorted(uses, tick))  # request `tick` (from 0) is the next
        for use in uses[at : at + 64].tolist():
            if not any(_holds(self._uses[d], use) for d in deeper):
                return use - tick + 1.0
        return np.inf

    def parameters(self) -> dict[str, float]:
        return {}


def _holds(uses: np.ndarray, use: int) -> bool:
    at = int(np.searchsorted(uses, use))
    return at < len(uses) and uses[at] == use
