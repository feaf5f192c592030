"""What kinds of records there are, as data: names, edges, and the hazard that is expected of each.

- tails (no record below) that haven't gone on yet, by the share of the tails under their fork that did;
- tails that have, by turns: uses in their chain;
- inner records by forks, or uses while inner, × kind; positions inside a prompt are inner from the start;
- records that forked often, by the mean requests between two that passed;
- ends of inputs that aren't used yet, by turns before them: their conversation's tails.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from marconi_ext.policies.table.checkpoints import Kind

INSIDE = (
    Kind.BRANCH,
    Kind.PROMPT_END,
    Kind.BOUNDARY,
    Kind.INPUT_END,
)  # the same sequence goes on below, though it isn't saved yet
KINDS = ("branch", "last token", "prompt end", "placed", "input end")
_SHARES = (0.03, 0.15, 0.5)  # of a fork's tails that went on
_GROUPS_OF_TURNS = (1, 2, 5)
FRESH = 2 + len(_SHARES)


@dataclass(frozen=True)
class Classes:
    """turns: least turns of each class of tails that have gone on; they are parts of three groups if there is a prior
    forks: least forks of the steps in which inner records are told apart
    rates: requests between two passes, that bound the classes of records that forked more often; none: forks tell
    input_turns: whether ends of inputs that aren't used yet are told apart as tails are
    prior: expected hazard relative to a tail's, by group; None: all are alike, and each class is its own group
    """

    turns: tuple[int, ...]
    forks: tuple[int, ...]
    rates: tuple[int, ...] = ()
    input_turns: bool = False
    prior: tuple[float, ...] | None = None

    @property
    def tails(self) -> int:
        """How many classes of tails there are; they come first."""
        return FRESH + len(self.turns)

    @property
    def names(self) -> list[str]:
        """In the order of their numbers."""
        shares = ("unknown", *(f"< {share:.0%}" for share in _SHARES), "more")
        turns = [f"{n}+ turns" for n in self.turns]
        often = [f"passed every {n}" for n in self.rates] + ["passed rarely"] if self.rates else []
        return [
            *(f"tail of a fork whose tails go on: {share}" for share in shares),
            *(f"tail, {turn}" for turn in turns),
            *(f"{kind}, {n}+ forks" for n in self.forks for kind in KINDS),
            *(f"forked often, {rate}" for rate in often),
            *([f"input end, {turn}" for turn in ("no turn", *turns)] if self.input_turns else []),
        ]

    @property
    def groups(self) -> np.ndarray | None:
        """The group of each class, ascending."""
        if self.prior is None:
            return None
        of_turn = np.searchsorted(_GROUPS_OF_TURNS, self.turns, side="right") - 1
        alone = len(self.forks) * len(KINDS) + (len(self.rates) + 1 if self.rates else 0)
        parts = [np.arange(FRESH), of_turn + FRESH, np.arange(alone) + FRESH + len(_GROUPS_OF_TURNS)]
        if self.input_turns:
            parts.append(np.concatenate([[0], of_turn + 1]) + parts[-1][-1] + 1)
        return np.concatenate(parts)

    @property
    def doubted(self) -> np.ndarray | None:
        """bool[groups]: whether a group is of what its own conversation has passed."""
        return None if self.prior is None else np.array(self.prior) == SUPERSEDED

    def fresh(self, born: int, went_on: int) -> int:
        """A tail without a turn yet, whose fork has had so many tails; few tell nothing."""
        return 0 if born < _MIN_BORN else 1 + bisect_right(_SHARES, went_on / born)

    def tail(self, turns: int) -> int:
        """A tail after so many turns, at least one."""
        return FRESH + bisect_right(self.turns, turns) - 1

    def inner(self, forks: int, kind: int) -> int:
        """kind: an index into KINDS"""
        return self.tails + len(KINDS) * (bisect_right(self.forks, forks) - 1) + kind

    def often(self, requests: float) -> int:
        """A record that forked often, and is passed once in so many requests."""
        return self.tails + len(KINDS) * len(self.forks) + bisect_right(self.rates, requests)

    def input_end(self, turns: int) -> int:
        """An end of an input that isn't used yet, after so many turns."""
        return self.often(self.rates[-1]) + 1 + bisect_right(self.turns, turns)


_MIN_BORN = 4
SUPERSEDED = 1 / 20  # of a tail's hazard, before anything was seen: its conversation has passed it

BASIC = Classes(turns=(1, 2, 5), forks=(0, 1, 2, 4))
FINE = Classes(
    turns=tuple(range(1, 17)),  # conversations may have a typical length
    forks=(0, 1, 2),
    rates=(4, 16, 64),
    input_turns=True,
    prior=(
        *(1.0, *_SHARES, 1.0),  # tails that haven't gone on: as many as did of those under their fork
        *len(_GROUPS_OF_TURNS) * (1.0,),
        *4 * (SUPERSEDED,),  # inner records that haven't forked,
        1.0,  # but for ends of inputs,
        *4 * (1.0,),  # which are superseded after their first fork
        SUPERSEDED,
        *5 * (1.0,),
        *(4.0, 2.0, 1.0, 0.5),  # forked often: less by half where passed a quarter as often
        *(1 + len(_GROUPS_OF_TURNS)) * (1.0,),  # ends of inputs not used yet
    ),
)
