"""Who may be evicted for whom: reserved states, floors, ceilings, and in which order they yield."""

from __future__ import annotations

import numpy as np

from marconi_ext.policies.admission import Offer
from marconi_ext.policies.currency import Currency
from marconi_ext.policies.fixed_rules import Lru
from marconi_ext.policies.runtime import PolicyRuntime
from marconi_ext.policies.table.checkpoints import Kind
from marconi_ext.policies.table.reserves import Quota


def runtime_with(tenants: str) -> tuple[PolicyRuntime, list[int]]:
    """A state a letter, the oldest first; a and b have quotas of their own, all others share one."""
    runtime = PolicyRuntime(None, Lru(), Currency())
    runtime.reserves.set_quotas({"a": Quota(2, 9), "b": Quota(0, 3)})
    rows = []
    for name in tenants:
        runtime.tick += 1
        row = runtime.record(-1, 10, Kind.BRANCH)
        runtime.table.tenant[row] = runtime.reserves.tenant(name, None)
        runtime.saved(row)
        rows.append(row)
    return runtime, rows


def test_a_floor_holds_against_others_and_not_against_its_own() -> None:
    runtime, rows = runtime_with("aacc")
    assert runtime.victim_of_all() == rows[2]  # older ones are a's last two
    newcomer = runtime.record(-1, 10, Kind.BRANCH)
    runtime.table.tenant[newcomer] = runtime.reserves.tenant("c", None)
    assert runtime.victim_of_all(newcomer) == rows[2]
    runtime.table.tenant[newcomer] = runtime.reserves.tenant("a", None)
    assert runtime.victim_of_all(newcomer) == rows[0]


def test_at_its_ceiling_a_tenant_makes_room_among_its_own() -> None:
    runtime, rows = runtime_with("caabbb")
    newcomer = runtime.record(-1, 10, Kind.BRANCH)
    runtime.table.tenant[newcomer] = runtime.reserves.tenant("b", None)
    assert runtime.victim_of_all(newcomer) == rows[3]
    assert runtime.reserves.excess(runtime.reserves.tenant("b", None)) == 0
    runtime.saved(newcomer)
    assert runtime.reserves.excess(runtime.reserves.tenant("b", None)) == 1


def test_reserved_states_go_last_and_that_is_counted() -> None:
    runtime, rows = runtime_with("aac")
    runtime.reserves.set_reserved(rows[2], True)
    assert runtime.victim_of_all() == rows[0], "floors yield before reserved states"
    runtime.evicted(rows[0])
    runtime.evicted(rows[1])
    assert runtime.reserves.yielded == 0 and runtime.victim_of_all() == rows[2]
    assert runtime.reserves.yielded == 1
    newcomer = runtime.record(-1, 10, Kind.BRANCH)
    assert runtime.victim_of_all(newcomer) is None, "no checkpoint is worth a reserved state"
    runtime.forget(rows[2])
    assert runtime.reserves.reserved == 0


def test_tenants_are_told_apart_by_key_then_salt() -> None:
    reserves = runtime_with("")[0].reserves
    number = reserves.tenant
    assert number("a", None) == number(None, "a") == number("a", "b") != number("b", None)
    assert number(None, None) == number("x", None) == number(None, "y") == 0
    assert set(reserves.states_by_tenant()) == {"*", "a", "b"}


def test_a_large_pool_is_searched_by_windows_and_holds_too() -> None:
    from marconi_ext.policies.registry import parse_policy

    admission, eviction = parse_policy("ours").build(Currency())
    runtime = PolicyRuntime(admission, eviction, Currency())
    runtime.reserves.set_quotas({"chat": Quota(200, 5_000)})
    for number in range(3_000):
        row = runtime.record(-1, 10 + number % 7, Kind.PROMPT_END)
        runtime.table.tenant[row] = runtime.reserves.tenant("chat" if number < 200 else None, None)
        runtime.offer(row, Offer(10, Kind.PROMPT_END))
        runtime.saved(row)
        runtime.tick += 1
    kept = np.flatnonzero(runtime.table.tenant[:3_000] == runtime.reserves.tenant("chat", None))
    runtime.reserves.set_reserved(int(kept[0]) + 500, True)
    for _ in range(2_799):
        runtime.evicted(runtime.victim_of_all())
    assert (
        runtime.table.live[kept].all()
        and runtime.table.live[int(kept[0]) + 500]
        and runtime.reserves.yielded == 0
    )
