"""Which answers later prompts repeat, by the token that they end with: the state after another one serves nobody.

A thinking model's answer is dropped with its thoughts, but a call of a tool is repeated as long as its loop lasts. A
call ends with the same token each time, an answer with any. So answers of one class of prompts are counted by their
last token, those that end with a rare one together, and while these are few all together.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

HALF_LIFE_ANSWERS = 256
FEW_ANSWERS = 16  # with which a token is a rare one, and nothing is known
MIN_REPEATED = 1 / 32  # of the answers: with fewer the states after them serve nobody,
MIN_DROPPED = 1 / 8  # where of all that weren't repeated so many were seen to be dropped: others may be yet
MIN_PARTINGS = 1.5  # fewer may be chance
KEPT_TOKENS = 32
TRIED_EACH = 16  # answers: their states are saved all the same, for what was true may not stay so
_DECAY = 0.5 ** (1 / HALF_LIFE_ANSWERS)


@dataclass(slots=True)
class _Tally:
    """Counts, decayed with each answer."""

    answers: float = 0.0
    repeated: float = 0.0

    def decay(self) -> None:
        self.answers *= _DECAY
        self.repeated *= _DECAY


@dataclass(slots=True)
class Answers:
    """Of one class of prompts. Deterministic. by_token: counts of those that ended with each, the least recent first"""

    _seen: int = 0
    _all: _Tally = field(default_factory=_Tally)
    by_token: OrderedDict[int, _Tally] = field(default_factory=OrderedDict)

    def ended(self, token: int, dropped: float) -> bool:
        """One ended with `token`. Returns: whether the state after it may serve.

        dropped: answers that prompts were seen to leave out, decayed
        """
        self._seen += 1
        one = self.by_token.setdefault(token, _Tally())
        self.by_token.move_to_end(token)
        if len(self.by_token) > KEPT_TOKENS:
            self.by_token.popitem(last=False)
        for tally in (self._all, *self.by_token.values()):
            tally.decay()
        for tally in (self._all, one):
            tally.answers += 1
        alike = ((tally.answers, tally.repeated) for tally in (one, self._rare(), self._all))
        answers, repeated = next((pair for pair in alike if pair[0] >= FEW_ANSWERS), (0.0, 0.0))
        useless = (
            answers >= FEW_ANSWERS
            and repeated < MIN_REPEATED * answers
            and dropped >= max(MIN_PARTINGS, MIN_DROPPED * (self._all.answers - self._all.repeated))
        )
        return not useless or self._seen % TRIED_EACH == 0

    def repeated(self, token: int) -> None:
        """A prompt repeats one that ended with `token`, for the first time."""
        for tally in (self._all, self.by_token.get(token)):
            if tally is not None:
                tally.repeated += 1

    def _rare(self) -> _Tally:
        """Answers that end with rare tokens."""
        often = [tally for tally in self.by_token.values() if tally.answers >= FEW_ANSWERS]
        answers = self._all.answers - sum(tally.answers for tally in often)
        return _Tally(answers, self._all.repeated - sum(tally.repeated for tally in often))
