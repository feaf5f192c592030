"""The fast policy against the plain one, to the bit, through any traffic."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from marconi_ext.policies.admission import Exact, Offer
from marconi_ext.policies.currency import Currency
from marconi_ext.policies.learned.gittins import KEPT, Gittins
from marconi_ext.policies.learned.reference import Record, values
from marconi_ext.policies.runtime import PolicyRuntime
from marconi_ext.policies.table.checkpoints import Kind

KINDS = st.sampled_from([Kind.BRANCH, Kind.LAST_TOKEN, Kind.PROMPT_END, Kind.BOUNDARY, Kind.INPUT_END])


class TheFastPolicyIsTheEquation(RuleBasedStateMachine):
    """Requests go through any record, states are saved, refused and evicted, KV goes, and the traffic changes."""

    @initialize(kv_bytes=st.sampled_from([0.0, 3.0]))
    def begin(self, kv_bytes: float) -> None:
        self.money = Currency(2.0, 0.01, 1e4, kv_bytes)
        self.runtime = PolicyRuntime(Exact(), Gittins(self.money), self.money)
        self.policy, self.table = self.runtime.eviction, self.runtime.table
        refresh, index = self.policy.index.refresh, self.policy.index

        def seen(elapsed: int) -> None:
            refresh(elapsed)
            self.seen = index.uses.tolist(), index.exposure.tolist()

        index.refresh = seen
        index.refresh(0)

    def path(self, at: float) -> list[int]:
        rows = self.table.rows().tolist()
        row, found = rows[int(at * len(rows))] if rows else -1, []
        while row >= 0:
            found.append(row)
            row = self.table.parent.item(row)
        return found[::-1]

    @rule(
        at=st.floats(0, 0.999), tokens=st.integers(1, 400), kind=KINDS, save=st.booleans(), pin=st.booleans()
    )
    def request(self, at: float, tokens: int, kind: Kind, save: bool, pin: bool) -> None:
        path = self.path(at)
        self.runtime.tick += 1
        served = next((row for row in reversed(path) if self.table.live[row]), -1)
        self.runtime.use(path, served)
        parent = path[-1] if path else -1
        depth = tokens + (self.table.depth.item(parent) if path else 0)
        row = self.runtime.record(parent, depth, kind)
        self.table.leaf_tokens[row] = tokens
        if parent >= 0:
            self.table.fanout[parent] += 1
            self.table.leaf_tokens[parent] = 0
        self.runtime.offer(row, Offer(depth, kind))
        if save:
            self.runtime.saved(row)
        else:
            self.runtime.refused(row)
        if served >= 0:
            self.table.pins[served] = int(pin)

    @rule(requests=st.integers(1, 70))
    def time_passes(self, requests: int) -> None:
        for _ in range(requests):
            self.runtime.tick += 1
            self.runtime.use([], -1)

    @rule(at=st.floats(0, 0.999), tokens=st.integers(1, 400))
    def come_back(self, at: float, tokens: int) -> None:
        """Again and again, so that LRU's lead, or the policy's, grows."""
        for _ in range(4):
            self.request(at, tokens, Kind.LAST_TOKEN, save=True, pin=False)

    @rule(at=st.floats(0, 0.999))
    def evict(self, at: float) -> None:
        rows = self.table.live_rows().tolist()
        if rows:
            self.runtime.evicted(rows[int(at * len(rows))])

    @rule(at=st.floats(0, 0.999))
    def lose_kv(self, at: float) -> None:
        leaves = [row for row in self.table.rows().tolist() if not self.table.children[row]]
        if leaves:
            row = leaves[int(at * len(leaves))]
            parent = self.table.parent.item(row)
            self.runtime.forget(row)
            if parent >= 0:
                self.table.fanout[parent] -= 1

    @invariant()
    def the_values_are_equal(self) -> None:
        policy, table, tick = self.policy, self.table, self.runtime.tick
        policy.ghosts.recount(table, tick)  # between two recounts a better ghost may not be known yet
        rows = table.rows()
        if not len(rows):
            return
        records = {row: policy.facts(table, row, tick) for row in rows.tolist()}
        classes = policy.classes
        facts = list(classes.prior), classes.groups.tolist(), classes.doubted.tolist(), self.money
        plain = values(records, *self.seen, *facts)
        live = table.live_rows()
        fast = dict(zip(live.tolist(), policy.scores(table, live, tick).tolist(), strict=True))
        for row, value in plain.items():
            assert fast[row] == (KEPT + value if row in policy.lru.kept else value)
            assert policy.score(table, row, tick) == fast[row]


TestTheFastPolicyIsTheEquation = TheFastPolicyIsTheEquation.TestCase
TestTheFastPolicyIsTheEquation.settings = settings(max_examples=20, stateful_step_count=15)


def test_a_hazard_that_is_off_by_one_bit_shows() -> None:
    """The comparison can fail."""
    money = Currency()
    policy = Gittins(money)
    records = {0: Record(label=7, age=9, depth=500, above=0)}
    uses, exposure = policy.index.uses.tolist(), policy.index.exposure.tolist()
    classes = policy.classes
    facts = (list(classes.prior), classes.groups.tolist(), classes.doubted.tolist(), money)
    right = values(records, uses, exposure, *facts)[0]
    exposure[7][9] = np.nextafter(1.0, 2.0)
    assert values(records, uses, exposure, *facts)[0] != right
