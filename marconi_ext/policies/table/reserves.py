"""Which states may not go, whatever the policy thinks of them: what an operator reserves, and each tenant's share.

A tenant is whoever sends requests of one `extra_key` or `cache_salt`. Others can't evict a tenant's states down below
its floor; a tenant that has reached its ceiling makes room among its own. Among the states that may go the policy
chooses as ever. Where nothing may go, floors yield first and reserved states last: a request that runs needs its slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from marconi_ext.policies.table.checkpoints import CheckpointTable

OTHERS = "*"


@dataclass(frozen=True)
class Quota:
    """States that a tenant keeps at least, and at most."""

    floor: int
    ceiling: int


class Reserves:
    """Nothing is reserved, and no tenant has a quota, until it is said."""

    def __init__(self, table: CheckpointTable) -> None:
        self._table = table
        self.reserved = 0  # rows
        self.yielded = 0  # searches in which a reserved state had to be offered
        self.set_quotas({})

    def set_quotas(self, quotas: Mapping[str, Quota]) -> None:
        """By tenant; `*` is all tenants together that have none of their own. Call it before the first request."""
        self._quotas = dict(quotas)
        names = [OTHERS, *(name for name in self._quotas if name != OTHERS)]
        self._numbers = {name: number for number, name in enumerate(names)}
        whole = Quota(0, 2**31)
        given = [self._quotas.get(name, whole) for name in names]
        self._floors = np.array([quota.floor for quota in given])
        self._ceilings = np.array([quota.ceiling for quota in given])

    @property
    def active(self) -> bool:
        """Whether anything is reserved."""
        return bool(self._quotas) or self.reserved > 0

    def tenant(self, extra_key: str | None, cache_salt: str | None) -> int:
        """The number of a request's tenant: by its `extra_key`, else by its `cache_salt`."""
        return self._numbers.get(extra_key or cache_salt or "", 0)

    def set_reserved(self, row: int, reserved: bool) -> None:
        """The state at this row may not go, or may again."""
        self.reserved += int(reserved) - int(self._table.reserved[row])
        self._table.reserved[row] = reserved

    def states_by_tenant(self) -> dict[str, int]:
        """States held or on their way, by the names that have a quota."""
        counts = self._counts()
        return {name: int(counts[number]) for name, number in self._numbers.items()} if self._quotas else {}

    def excess(self, tenant: int) -> int:
        """States of a tenant beyond its ceiling."""
        return max(0, int(self._counts()[tenant] - self._ceilings[tenant])) if self._quotas else 0

    def of_tenant(self, rows: np.ndarray, tenant: int) -> np.ndarray:
        """Of `rows` those of one tenant that aren't reserved."""
        return rows[(self._table.tenant[rows] == tenant) & ~self._table.reserved[rows]]

    def may_go(self, rows: np.ndarray, newcomer: int = -1) -> np.ndarray:
        """bool[len(rows)]: which may go for the state offered at row `newcomer`; -1: for a running request's slot."""
        free = ~self._table.reserved[rows]
        if not self._quotas:
            return free
        counts, tenants = self._counts(), self._table.tenant[rows]
        safe = counts <= self._floors
        if newcomer >= 0:
            own = self._table.tenant.item(newcomer)
            if counts[own] >= self._ceilings[own]:
                return free & (tenants == own)
            safe[own] = False
        return free & ~safe[tenants]

    def those_that_may(self, rows: np.ndarray, newcomer: int = -1) -> np.ndarray:
        """`rows` that may go. Where none may and a request needs a slot: those above floors, then all."""
        found = rows[self.may_go(rows, newcomer)]
        if len(found) or newcomer >= 0:
            return found
        found = rows[~self._table.reserved[rows]]
        if not len(found) and len(rows):
            self.yielded += 1
            return rows
        return found

    def _counts(self) -> np.ndarray:
        live = self._table.live_rows()
        return np.bincount(self._table.tenant[live], minlength=len(self._numbers))
