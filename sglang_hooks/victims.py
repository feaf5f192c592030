"""Which recurrent state goes first when the pool is full: a pure, small, learned score.

A state is worth the tokens that it saves over the nearest state above it, times the rate at which states of its
class were hit lately, faded by age. Classes are what a glance at the tree tells: superseded states (the same
conversation has a deeper one, with no fork between) start out as nearly worthless, so they go first; where traffic
comes back to them, as forked conversations do, their rate rises and they stay. It stands in for the policies of
`marconi_ext.policies`, which know more and need a longer record.
"""

from __future__ import annotations

from enum import IntEnum

from marconi_ext.config import CheckpointKind


class StateClass(IntEnum):
    """Where a state lies in the tree."""

    TAIL = 0  # nothing cached below
    SUPERSEDED_PROMPT_END = 1  # below it, the same request's answer
    SUPERSEDED = 2  # one continuation below
    FORK = 3  # several continuations below
    BRANCH = 4  # saved as a branch point, whatever lies below


PRIOR_HITS = {
    StateClass.TAIL: 1.0,
    StateClass.SUPERSEDED_PROMPT_END: 0.002,
    StateClass.SUPERSEDED: 0.05,
    StateClass.FORK: 1.0,
    StateClass.BRANCH: 1.0,
}
PRIOR_EXPOSURE = 200.0  # how many states, seen for one tick each, the prior is worth
HITS_AT_PRIOR = 1 / 40  # of a tail, per tick
HALF_LIFE_TICKS = 30.0
AGE_EXPONENT = 0.3


def classify(kind: CheckpointKind, continuations: int) -> StateClass:
    """The class of a state by its kind and the number of continuations that the tree holds below it."""
    if kind is CheckpointKind.BRANCH:
        return StateClass.BRANCH
    if continuations == 0:
        return StateClass.TAIL
    if continuations > 1:
        return StateClass.FORK
    if kind is CheckpointKind.PROMPT_END:
        return StateClass.SUPERSEDED_PROMPT_END
    return StateClass.SUPERSEDED


class HitRates:
    """Hits and exposure (states x ticks) by class, both with a half-life; a tick is one extend of one request.

    Deterministic: every tensor-parallel rank sees the same requests, hence learns the same.
    """

    def __init__(self) -> None:
        self._hits = [0.0] * len(StateClass)
        self._exposure = [0.0] * len(StateClass)
        self._decayed_at_tick = 0

    def hit(self, state_class: StateClass, tick: int) -> None:
        """A request starts from a state of this class."""
        self._decay(tick)
        self._hits[state_class] += 1

    def exposed(self, counts: list[int], tick: int) -> None:
        """At `tick`, so many states of each class were there and could have been hit."""
        self._decay(tick)
        for state_class, count in enumerate(counts):
            self._exposure[state_class] += count

    def rate(self, state_class: StateClass) -> float:
        """Hits per state and tick."""
        prior = PRIOR_HITS[state_class] * HITS_AT_PRIOR * PRIOR_EXPOSURE
        return (self._hits[state_class] + prior) / (self._exposure[state_class] + PRIOR_EXPOSURE)

    def value(self, state_class: StateClass, tokens_saved: int, age_ticks: int) -> float:
        """What keeping a state is worth; the lowest goes first. Tokens, discounted."""
        return tokens_saved * self.rate(state_class) / (age_ticks + 1) ** AGE_EXPONENT

    def _decay(self, tick: int) -> None:
        if tick > self._decayed_at_tick:
            kept = 0.5 ** ((tick - self._decayed_at_tick) / HALF_LIFE_TICKS)
            self._hits = [kept * hits for hits in self._hits]
            self._exposure = [kept * exposure for exposure in self._exposure]
            self._decayed_at_tick = tick
