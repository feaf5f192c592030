"""A guard against a policy that is wrong about the traffic: is plain LRU ahead?

A shadow of what LRU would hold (branches and last tokens, as the paper admits them) is kept as a list of records, and
its hits are compared with those of the cache, request by request. LRU's lead is summed up from where it was last
behind (a CUSUM test): however far ahead the policy was before the traffic changed, a run of requests that LRU alone
would have served shows at once. It costs a few dictionary operations a request.
"""

from __future__ import annotations

from collections import OrderedDict

from marconi_ext.policies.checkpoints import CheckpointBook, Kind

LEAD_HITS = 6.0  # hits of the usual size by which LRU must be ahead: less happens by chance
HALF_LIFE_REQUESTS = 2  # of the usual size, so that it follows the traffic
GUARD_REQUESTS = 16  # LRU's order holds, then the policy is given another chance
_SHADOWED = (Kind.BRANCH, Kind.LAST_TOKEN)


class LruGuard:
    """`active`: LRU's order should hold. `requests`: how many it held for."""

    def __init__(self) -> None:
        self.active = False
        self.requests = 0
        self._shadow: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._lead = 0.0  # tokens
        self._squares = self._tokens = (
            0.0  # of hits, decayed; their ratio is the size that most tokens come in
        )
        self._until = 0

    def __contains__(self, row: int) -> bool:
        """Whether LRU would hold the state at `row`."""
        return row in self._shadow

    def request(self, book: CheckpointBook, path: list[int], served: int, tick: int) -> bool:
        """A request on these rows, served by the state at `served` (-1: none). True: LRU has turned out ahead."""
        shadow = next((row for row in reversed(path) if row in self._shadow), -1)
        ours = book.depth.item(served) if served >= 0 else 0
        theirs = book.depth.item(shadow) if shadow >= 0 else 0
        if shadow >= 0:
            self._shadow.move_to_end(shadow)
        hit, decay = max(ours, theirs), 0.5 ** (1 / HALF_LIFE_REQUESTS)
        self._squares = self._squares * decay + hit * hit
        self._tokens = self._tokens * decay + hit
        ahead = False
        if tick >= self._until:
            self._lead = max(self._lead + theirs - ours, 0.0)
            ahead = self._lead * self._tokens > LEAD_HITS * self._squares
            if ahead:
                self._until, self._lead = tick + GUARD_REQUESTS, 0.0
        self.active = tick < self._until
        self.requests += self.active
        return ahead

    def offered(self, book: CheckpointBook, row: int) -> None:
        """A state is offered at `row`."""
        if book.kind.item(row) in _SHADOWED:
            self._shadow[row] = None
            self._shadow.move_to_end(row)
            while len(self._shadow) > max(book.num_live, 1):
                self._shadow.popitem(last=False)

    def forgotten(self, row: int) -> None:
        """`row` is about to be freed."""
        self._shadow.pop(row, None)
