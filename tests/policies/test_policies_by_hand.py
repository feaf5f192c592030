"""Admission and eviction on facts worked by hand."""

from dataclasses import replace

import numpy as np
import pytest

from marconi_ext.config import MarconiConfig
from marconi_ext.errors import BadInputError
from marconi_ext.policies.admission import (
    EveryBlock,
    Exact,
    Grid,
    Judicious,
    PromptFacts,
    Selective,
)
from marconi_ext.policies.currency import Currency
from marconi_ext.policies.fixed_rules import FlopAware, Lru, LruLeaf, SegLen
from marconi_ext.policies.learned.gittins_index import GittinsIndex
from marconi_ext.policies.learned.hazards import age_bucket
from marconi_ext.policies.paper.tuner import Marconi
from marconi_ext.policies.registry import canonical_name, parse_policy
from marconi_ext.policies.table.checkpoints import CheckpointTable, Fate, Kind
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.sweep import CellKey


def facts(**changes) -> PromptFacts:
    base = {
        "prompt_tokens": 1000,
        "sequence_tokens": 1100,
        "hit_tokens": 300,
        "kv_tokens": 700,
        "diverges": True,
    }
    return PromptFacts(**{**base, **changes})


def positions(offers) -> list[int]:
    return [offer.depth_tokens for offer in offers]


def test_judicious_and_exact() -> None:
    assert positions(Judicious().plan(facts())) == [700, 1100]
    assert positions(Judicious().plan(facts(diverges=False))) == [1100]  # extends a leaf: no fork
    assert positions(Exact().plan(facts())) == [700, 999, 1100]
    assert positions(Exact().plan(facts(kv_tokens=300, sequence_tokens=1000))) == [999]  # no answer


def test_every_block() -> None:
    assert positions(EveryBlock(32).plan(facts(hit_tokens=960, sequence_tokens=1030))) == [992, 1024]


def test_grid_branch_displaces_the_tail_of_its_extend() -> None:
    """From 300 in chunks of 400 on a grid of 64: extends end at 700 and 1000. The branch 700 floors to 640, in
    the first extend, whose tail 300 + 384 = 684 it displaces; the second's tail is 700 + 256 = 956. The answer
    passes 1024 = 4·256."""
    offers = Grid(64, 256, 400).plan(facts(sequence_tokens=1100))
    assert [(o.depth_tokens, o.displaced) for o in offers] == [
        (640, False),
        (684, True),
        (956, False),
        (1024, False),
    ]


def test_selective_wants_a_gain_and_saves_proven_forks_again() -> None:
    """A match of 700 asks for a gain of min(64, 87) = 64 tokens; a smaller one takes room only if it is free. So does
    the guess of a first prompt, at 968."""

    def planned(**changes: object) -> list[tuple[int, bool]]:
        return [(offer.depth_tokens, offer.spare) for offer in Selective().plan(facts(**changes))]

    ends = [(968, True), (999, False), (1100, False)]
    assert planned(hit_tokens=637) == [(700, True), *ends]
    assert planned(hit_tokens=636) == [(700, False), *ends]
    assert planned(proven_forks=(650,)) == [(650, False), (700, True), *ends]


@pytest.fixture
def table() -> CheckpointTable:
    """shared (100) -> old tail (300) -> new tail (400), and shared -> other (1100); all live."""
    table = CheckpointTable(2)
    shared = table.add(-1, 100, Kind.BRANCH, 1)
    old = table.add(shared, 300, Kind.LAST_TOKEN, 2)
    new = table.add(old, 400, Kind.LAST_TOKEN, 3)
    other = table.add(shared, 1100, Kind.LAST_TOKEN, 4)
    for tick, row in enumerate((shared, old, new, other), start=1):
        table.set_live(row, tick)
    table.last_path[:4] = [9, 9, 9, 4]
    table.check()
    return table


def victim(rule, table, tick=10) -> int:
    rows = table.live_rows()
    return int(rows[rule.scores(table, rows, tick).argmin()])


def test_fixed_rules_pick_by_hand(table) -> None:
    """LRU: the oldest, shared. Over leaves with whole paths refreshed: other (4 against 9). SegLen: tokens above
    over age: shared 100/10, old 200/9, new 100/8, other 1000/7: shared. α = 0 is LRU; a large α drops the state
    that saves least per byte: shared or new (100 tokens each); recency decides for shared."""
    assert victim(Lru(), table) == 0
    assert victim(LruLeaf(), table) == 3
    assert victim(SegLen(), table) == 0
    assert victim(FlopAware(alpha=0.0), table) == 0
    assert victim(FlopAware(Currency(linear=1.0), alpha=100.0), table) == 0
    table.last_use[0] = 8
    assert victim(FlopAware(Currency(linear=1.0), alpha=100.0), table) == 2


def test_owners_follow_evictions(table) -> None:
    table.set_gone(1, Fate.EVICTED)
    assert (table.owner[2], table.above[2]) == (0, 100)
    table.set_gone(0, Fate.EVICTED)
    assert table.above[[2, 3]].tolist() == [0, 0]
    table.set_live(1, 5)
    assert (table.above[2], table.above[3]) == (300, 0)
    table.check()
    table.forget(2)
    assert table.num_live == 2 and table.add(1, 500, Kind.BRANCH, 6) == 2  # the row is used again
    table.check()


def test_index_prefers_what_comes_back_soon() -> None:
    """Class 0 is used at age 4, class 1 at age 100 only; both are exposed alike. At age 2 class 0 is worth more;
    a class that was never used is worth least."""
    index = GittinsIndex(3)
    for _ in range(200):
        index.used(0, 4)
        index.used(1, 100)
        ages = np.array([0, 0, 0]), np.array([4, 100, 200])
        index.expose(np.array([0, 1, 2]), *ages)
    index.refresh(0)
    at = int(age_bucket(np.float64(2)))
    assert index.value[0, at] > index.value[1, at] > index.value[2, at]
    assert index.exposure.sum() == pytest.approx(200 * 304)
    index.refresh(4000)
    assert index.uses.sum() == pytest.approx(200)  # one half-life


def test_marconi_tunes_once_and_prefers_depth_where_depth_pays() -> None:
    """Two deep records come back every tenth request, a stream of shallow ones never does. With two slots LRU
    has nothing; an α above 0 keeps the deep ones."""
    rule = Marconi(multiplier=5)
    table, deep = CheckpointTable(), []
    for tick in range(1, 400):
        path = [deep[tick // 10 % 2]] if deep and tick % 10 == 0 else []
        rule.request(table, path, path[-1] if path and table.live[path[-1]] else -1, tick)
        if len(deep) < 2 or tick % 10:
            row = table.add(-1, 5000 if len(deep) < 2 else 10, Kind.LAST_TOKEN, tick)
            if len(deep) < 2:
                deep.append(row)
        else:
            row = path[0]
        rule.offered(table, row, tick)
        if table.live[row]:
            continue
        if table.num_live >= 3:
            rows = table.live_rows()
            table.set_gone(int(rows[rule.scores(table, rows, tick).argmin()]), Fate.EVICTED)
        table.set_live(row, tick)
    assert rule.tuned and rule.alpha > 0
    assert rule.parameters()["alpha"] == rule.alpha


def test_names() -> None:
    assert parse_policy("gittins").admission == "fork-predictor"
    assert parse_policy("sglang+").eviction == "lru-leaf"
    parsed = parse_policy("every-block:64+flop-aware:0.5")
    assert (parsed.admission_parameter, parsed.eviction_parameter) == (64, 0.5)
    for bad in (
        "",
        "gittins:1",
        "flop-aware",
        "exact:3+lru",
        "lru+gittins",
        "artifact-lru:1",
        "flop-aware:-1",
    ):
        with pytest.raises(BadInputError, match="--policy"):
            parse_policy(bad)


def test_earlier_names_mean_the_same() -> None:
    for old, new in (("ours", "gittins"), ("learned+git", "fork-predictor+gittins-basic")):
        assert replace(parse_policy(old), text="") == replace(parse_policy(new), text="")
        assert canonical_name(old) == canonical_name(new) == new
    written = {"capacity_bytes": None, "slots": 4, "tokens": None}
    written |= {"trace": "t", "seed": 0, "policy": "ours", "model": "m"}
    assert CellKey("t", 0, "gittins", Capacity(slots=4), "m").matches(written)
    assert MarconiConfig(eviction="learned+git").policy == "learned+git"
