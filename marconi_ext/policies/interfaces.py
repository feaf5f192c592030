"""What the runtime asks of a policy: which states to save (admission), and which to keep (eviction)."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from marconi_ext.policies.admission import Offer, PromptFacts
from marconi_ext.policies.table.checkpoints import CheckpointTable


class Admission(Protocol):
    """Which states to save of a request. `grid_tokens`: it saves at multiples of these, 1: at any token."""

    @property
    def grid_tokens(self) -> int: ...
    def plan(self, facts: PromptFacts) -> list[Offer]:
        """States to offer, shallow first. May learn from the facts: it is asked once a request."""


@runtime_checkable
class LearnsAnswers(Protocol):
    """What an admission may be as well: it has the last word on states of answers."""

    def answered(self, prompt_class: int, answer_end: int) -> bool:
        """A prompt's answer ended with this token. Returns: whether the state after it may serve."""

    def answer_grid(self, prompt_class: int) -> int:
        """Tokens: answers to prompts of a class should leave a state at a multiple; 0: none."""


class Scores(Protocol):
    """What each state is worth, float64[len(rows)]; the lowest goes. `windowed`: it is a WindowedScores."""

    windowed: ClassVar[bool]

    def scores(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray: ...


class WindowedScores(Scores, Protocol):
    """Scores of which a search may look at some only: one that scales over all candidates can't be so."""

    def floors(self, table: CheckpointTable, rows: np.ndarray, tick: int) -> np.ndarray:
        """Lower bounds of the scores, cheaper than these. The caller may write into the array."""

    def score(self, table: CheckpointTable, row: int, tick: int) -> float:
        """As `scores`, of one row: the same to the bit."""

    def changed(self) -> np.ndarray:
        """Rows whose score may have fallen since they were last asked for: int64[n], each may come twice."""


class Eviction(Scores, Protocol):
    """A policy. One that `refuses` may turn a newcomer away that scores lower than every state held.

    max_fanout: only states with at most so many continuations below are candidates; None: all are
    by_kv: the scores by which leaves go when KV is short, and slots aren't; often the policy itself
    """

    refuses: ClassVar[bool]

    @property
    def max_fanout(self) -> int | None: ...
    @property
    def by_kv(self) -> Scores: ...

    def request(self, table: CheckpointTable, path: list[int], served: int, tick: int) -> None:
        """`path`: rows on the matched path, shallow first; `served`: the live one that was hit, or -1."""

    def offered(self, table: CheckpointTable, row: int, tick: int) -> None:
        """A state is offered at `row`, new or seen before."""

    def gone(self, table: CheckpointTable, row: int, tick: int) -> None:
        """The state at `row` was evicted or refused; the record stays."""

    def forgotten(self, table: CheckpointTable, row: int) -> None:
        """`row` is about to be freed."""

    def parameters(self) -> dict[str, float]:
        """What tuning or learning ended with."""


@runtime_checkable
class HasClasses(Protocol):
    """What a policy may be as well: it tells records apart by class."""

    def class_name(self, row: int) -> str:
        """The class that a known row is in."""


@runtime_checkable
class LeavesWork(Protocol):
    """What a policy may be as well: it computes when it is asked."""

    def catch_up(self) -> None:
        """Compute what is due now, while nobody waits: the same as when it is asked for."""


class WindowedEviction(Eviction, WindowedScores, Protocol):
    """A policy for pools of any size."""
