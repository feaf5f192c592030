"""Where the traffic changes: LRU is given a share of the slots, as far as it is ahead.

A shadow of what LRU would hold, superseded states left out, is kept as a list of records, and its hits are
compared with those of the cache, request by request. LRU's lead is summed up from where it was last behind (a
CUSUM): however far ahead the policy was before the traffic changed, a few requests that LRU alone would have
served show at once. As long as states from before the lead began are hit, though, the traffic is what it was, and
LRU is ahead by chance. So its share of the slots is

    share = lead / (3 + hits since then on states from before it)

The states that LRU would keep longest stay in so many slots. Where that is all of them, the traffic has changed: what
was learned before the lead began counts little from then on. It costs a few dictionary operations a request.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice

from marconi_ext.policies.table.checkpoints import CheckpointTable, Kind

FULL_LEAD_HITS = 3.0  # at which LRU has all slots where nothing from before is hit
HALF_LIFE_REQUESTS = 2  # of the usual size of a hit, so that it follows the traffic
BEFORE = 1 / 16  # what was learned before a change counts from then on, and a record that isn't used since
FEW_REQUESTS = 256  # after a change until such records count as others do
MOST_PASSED = 4  # rows above a newcomer that aren't in the shadow, before the search for superseded ones ends
_PLACED = int(Kind.BOUNDARY)


class LruShare:
    """`lead`: LRU's, in hits of the size usual of late; `since`: the tick from which on it is summed up.
    share: of the slots, that its lead is worth

    changes: how often it had all slots; began: the tick of the last change; unused_since: records that haven't been
    used since this tick are of before
    """

    def __init__(self) -> None:
        self.lead = self.share = 0.0
        self.since = self.changes = self.began = self.unused_since = 0
        self.kept: frozenset[int] = frozenset()  # rows that stay
        self._shadow: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._ahead = self._old = 0.0  # tokens; of hits on states from before the lead
        self._squares = self._tokens = (
            0.0  # of hits, decayed; their ratio is the size that most tokens come in
        )

    def request(self, table: CheckpointTable, path: list[int], served: int, tick: int) -> bool:
        """A request on these rows, served by the state at `served` (-1: none). Whether the traffic has changed."""
        shadow = next((row for row in reversed(path) if row in self._shadow), -1)
        ours = table.depth.item(served) if served >= 0 else 0
        theirs = table.depth.item(shadow) if shadow >= 0 else 0
        if shadow >= 0:
            self._shadow.move_to_end(shadow)
        hit, decay = max(ours, theirs), 0.5 ** (1 / HALF_LIFE_REQUESTS)
        self._squares = self._squares * decay + hit * hit
        self._tokens = self._tokens * decay + hit
        if self._ahead == 0.0:
            self.since, self._old = tick, 0.0
        if served >= 0 and table.last_use.item(served) < self.since:
            self._old += ours
        self._ahead = max(self._ahead + theirs - ours, 0.0)
        hits_a_token = self._tokens / self._squares if self._ahead else 0.0
        self.lead = self._ahead * hits_a_token
        self.share = self.lead / (FULL_LEAD_HITS + self._old * hits_a_token)
        changed = self.share > 1.0
        if changed:
            self.lead = self.share = self._ahead = 0.0
            self.changes += 1
            self.began, self.unused_since = tick, self.since
        self._keep(table)
        return changed

    def offered(self, table: CheckpointTable, row: int) -> None:
        """A state is offered at `row`."""
        if table.kind.item(row) != _PLACED:
            self._shadow[row] = None
            self._shadow.move_to_end(row)
            above = table.parent.item(row)
            passed = 0
            while above >= 0 and passed < MOST_PASSED and table.fanout.item(above) < 2:
                passed += above not in self._shadow  # what is above it has left before
                self._shadow.pop(above, None)  # superseded
                above = table.parent.item(above)
            while len(self._shadow) > max(table.num_live, 1):
                self._shadow.popitem(last=False)
            self._keep(table)

    def forgotten(self, row: int) -> None:
        """`row` is about to be freed."""
        self._shadow.pop(row, None)
        if row in self.kept:  # else the set would be copied for nothing
            self.kept -= {row}

    def anew(self, tick: int) -> bool:
        """Whether little has been learned since the traffic changed, or since the start."""
        return tick - self.began <= FEW_REQUESTS

    def _keep(self, table: CheckpointTable) -> None:
        slots = int(self.share * table.num_live)
        if slots or self.kept:
            self.kept = frozenset(islice(reversed(self._shadow), slots))
