"""A guard against a policy that is wrong about the traffic: is plain LRU ahead?

A shadow of what LRU would hold (branches and last tokens, as the paper admits them) is kept as a list of records, and
its hits are compared with those of the cache, request by request. LRU's lead is summed up from where it was last
behind (a CUSUM test): however far ahead the policy was before the traffic changed, a run of requests that LRU alone
would have served shows at once. It costs a few dictionary operations a request.
"""

from __future__ import annotations

from collections import OrderedDict

from marconi_ext.policies.table.checkpoints import CheckpointTable, Kind

HALF_LIFE_REQUESTS = 2  # of the usual size, so that it follows the traffic
_SHADOWED = (Kind.BRANCH, Kind.LAST_TOKEN)


class LruGuard:
    """`lead`: LRU's, in hits of the size usual of late; `since`: the tick from which on it is summed up."""

    def __init__(self) -> None:
        self.lead = 0.0
        self.since = 0
        self._shadow: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._ahead = 0.0  # tokens
        self._squares = self._tokens = (
            0.0  # of hits, decayed; their ratio is the size that most tokens come in
        )

    def request(self, table: CheckpointTable, path: list[int], served: int, tick: int) -> None:
        """A request on these rows, served by the state at `served` (-1: none)."""
        shadow = next((row for row in reversed(path) if row in self._shadow), -1)
        ours = table.depth.item(served) if served >= 0 else 0
        theirs = table.depth.item(shadow) if shadow >= 0 else 0
        if shadow >= 0:
            self._shadow.move_to_end(shadow)
        hit, decay = max(ours, theirs), 0.5 ** (1 / HALF_LIFE_REQUESTS)
        self._squares = self._squares * decay + hit * hit
        self._tokens = self._tokens * decay + hit
        if self._ahead == 0.0:
            self.since = tick
        self._ahead = max(self._ahead + theirs - ours, 0.0)
        self.lead = self._ahead * self._tokens / self._squares if self._ahead else 0.0

    def restart(self) -> None:
        """Something is done about it."""
        self.lead = self._ahead = 0.0

    def offered(self, table: CheckpointTable, row: int) -> None:
        """A state is offered at `row`."""
        if table.kind.item(row) in _SHADOWED:
            self._shadow[row] = None
            self._shadow.move_to_end(row)
            while len(self._shadow) > max(table.num_live, 1):
                self._shadow.popitem(last=False)

    def forgotten(self, row: int) -> None:
        """`row` is about to be freed."""
        self._shadow.pop(row, None)
