"""What another policy was served that this one wasn't: which states it had dropped, and was asked for.

Both run over the same requests, request by request. Where the other one serves a longer prefix, the difference is put
down to the deepest state on the request's path that this policy had dropped, at most as deep as the other's: to what
it was when it went.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass

import numpy as np

from marconi_ext.policies.interfaces import HasClasses
from marconi_ext.policies.runtime import PolicyRuntime
from marconi_ext.policies.simple_rules import superseded
from marconi_ext.policies.table.checkpoints import CheckpointTable, Fate, Kind
from marconi_ext.simulator.simulator import Simulator
from marconi_ext.traces import Request

NOT_SAVED = ("not saved", "–", "–")  # no state that the policy had dropped is on the path


@dataclass(frozen=True)
class Drop:
    """A state that went. role: tail, superseded, fork or placed; label: the policy's class, if it has any."""

    fate: str
    role: str
    label: str
    tick: int
    age: int  # requests since its last use


@dataclass
class Loss:
    """Requests that asked for such states, and means over these: depth (tokens), age when dropped and requests from
    then until it was asked for; `share`: tokens lost, of all prompt tokens."""

    fate: str
    role: str
    label: str
    requests: int = 0
    share: float = 0.0
    depth: float = 0.0
    age: float = 0.0
    waited: float = 0.0


class DropLog:
    """Takes down what goes from one runtime's table."""

    def __init__(self, runtime: PolicyRuntime) -> None:
        self.drops: dict[int, Drop] = {}
        self._runtime = runtime
        runtime.on_gone = self.gone

    def gone(self, row: int) -> None:
        """The state at `row` was refused or evicted."""
        table, tick = self._runtime.table, self._runtime.tick
        eviction = self._runtime.eviction
        self.drops[row] = Drop(
            fate="refused" if table.fate.item(row) == Fate.REFUSED else "evicted",
            role=role_of(table, row),
            label=eviction.class_name(row) if isinstance(eviction, HasClasses) else "–",
            tick=tick,
            age=tick - table.last_use.item(row),
        )

    def deepest(self, path: list[int], most_tokens: int) -> tuple[int, Drop] | None:
        """The deepest state on a path, at most so deep, that went and isn't back: its row and how it went."""
        table = self._runtime.table
        for row in reversed(path):
            if table.depth.item(row) <= most_tokens and not table.live[row] and row in self.drops:
                return row, self.drops[row]
        return None


def role_of(table: CheckpointTable, row: int) -> str:
    """What a state is to its conversation."""
    if table.fanout.item(row) > 1:
        return "fork"
    if superseded(table, np.array([row]))[0]:
        return "superseded"
    return "placed" if table.kind.item(row) in (Kind.BOUNDARY, Kind.BRANCH) else "tail"


def compare(requests: list[Request], policy: Simulator, other: Simulator) -> dict:
    """Run both; a JSON-ready dict: `behind` and `ahead` (tokens where the other, or the policy, is served more) in
    fractions of the prompt tokens, and `losses`, the largest first, which sum up to `behind`."""
    log, losses = DropLog(policy.runtime), {}
    sums: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0.0] * 5)
    ahead = prompts = 0
    for request in requests:
        prompts += len(request.input_ids)
        look = policy.tree.lookup(request.input_ids[:-1])
        path = [node.record for node in look.path if node.record is not None]
        theirs = other.serve(request).hit_tokens
        found = log.deepest(path, theirs)
        ours = policy.serve(request).hit_tokens
        ahead += max(ours - theirs, 0)
        if theirs <= ours:
            continue
        row, drop = found if found is not None else (-1, None)
        if drop is None or policy.table.depth.item(row) <= ours:
            key, facts = NOT_SAVED, (theirs, 0, 0)
        else:
            key = (drop.fate, drop.role, drop.label)
            facts = (policy.table.depth.item(row), drop.age, policy.tick - drop.tick)
        for i, amount in enumerate((1, theirs - ours, *facts)):
            sums[key][i] += amount
    for key, (count, lost, *totals) in sums.items():
        losses[key] = Loss(*key, int(count), lost / prompts, *(total / count for total in totals))
    policy.finish()
    other.finish()
    ordered = sorted(losses.values(), key=lambda loss: -loss.share)
    return {
        "behind": sum(loss.share for loss in ordered),
        "ahead": ahead / prompts,
        "losses": [asdict(loss) for loss in ordered],
    }
