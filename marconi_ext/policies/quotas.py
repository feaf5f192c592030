"""Tenants' shares of the state slots, as `--marconi-quotas` takes them."""

from __future__ import annotations

import json
from collections.abc import Mapping

from marconi_ext.policies.table.reserves import Quota

Shares = dict[str, dict[str, float]]


def parse_quotas(text: str) -> Shares:
    """`{"chat": {"floor": 0.3}, "batch": {"ceiling": 0.2}, "*": {"ceiling": 0.5}}` → shares. Raises ValueError."""
    example = 'as in {"chat": {"floor": 0.3}, "batch": {"ceiling": 0.2}}'
    try:
        given = json.loads(text)
    except ValueError as error:
        raise ValueError(f"no JSON ({error}); want it {example}") from None
    if not isinstance(given, dict) or not all(isinstance(quota, dict) for quota in given.values()):
        raise ValueError(f"want an object of objects, {example}")
    for tenant, quota in given.items():
        unknown = sorted(set(quota) - {"floor", "ceiling"})
        if unknown or not quota:
            raise ValueError(f"{tenant!r}: want floor, ceiling or both, {example}")
        for name, share in quota.items():
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
                raise ValueError(f"{tenant!r}: {name}: want a share of the slots from 0 to 1, got {share!r}")
        if quota.get("floor", 0) > quota.get("ceiling", 1):
            raise ValueError(f"{tenant!r}: the floor is above the ceiling")
    floors = sum(quota.get("floor", 0) for quota in given.values())
    if floors > 0.9:
        raise ValueError(f"the floors take {floors:g} of the slots; leave at least 0.1 to be shared")
    return given


def quotas_in_slots(shares: Shares, slots: int) -> Mapping[str, Quota]:
    """Each tenant's quota in states, of a pool of `slots`."""
    return {
        tenant: Quota(int(quota.get("floor", 0) * slots), int(quota.get("ceiling", 1) * slots))
        for tenant, quota in shares.items()
    }
