"""Where the input of a prompt ends: learned from where later prompts part from earlier ones, near their ends.

A thinking model's next prompt repeats the last one up to somewhere in its generation prompt, and then drops what was
generated. A state there is what the next turn starts from; one after the answer never serves. Each prompt belongs to
a *class*: how it ends (see `InputEnd.kind`), and whether it repeats an earlier prompt with its answer, reasoning and
all, as calls in a tool loop do. Of each class is counted how many tokens before their ends later prompts part from
its prompts, looked up in the *earlier* prompt, which is the one in which the state must be saved. A prompt that ends as
none did before is served by what was seen of all: as far before its end as any parted, which loses the tokens between.
The very first prompts get a guess, in a free slot.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

import numpy as np

from marconi_ext.policies.answer_grid import best_grid
from marconi_ext.policies.answers import MIN_PARTINGS, Answers
from marconi_ext.policies.messages import TAIL_TOKENS, InputEnd

HALF_LIFE_PROMPTS = 256  # of a class
KEPT_PARTINGS = 32
KEPT_CLASSES = 64
MIN_SHARE = 1 / 32  # of a class's prompts
KNOWN_PARTINGS = 16.0  # that what a template says counts for: more than MIN_SHARE of all that are counted
GUESSED_PARTINGS = 2.0  # that what a header says does
MIN_GAIN = 16  # tokens, over the states above
PLACES = 2  # for one prompt
GUESSED_PROMPTS = 3  # the first ones, while nothing parted near an end and no answer was repeated
GUESS_TOKENS = 2 * TAIL_TOKENS  # before an end: far enough above all partings that it hides none
FEW_PROMPTS = 16  # of a class, up to which it is new
_DECAY = 0.5 ** (1 / HALF_LIFE_PROMPTS)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is planned for one prompt.

    number: of its class, > 0
    distances: from the prompt's end to where its input may end, tokens; 0: the prompt's end itself
    guessed: nothing is known of `distances`, which are worth a free slot and nobody else's
    """

    number: int
    distances: tuple[int, ...]
    guessed: bool = False


@dataclass(slots=True)
class _Inside:
    """Of prompts that part inside the answers to earlier ones. partings: counted, and decayed by who owns it"""

    partings: float = 0.0
    grid: int = 0  # see `answer_grid.py`
    recent: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=KEPT_PARTINGS))

    def parted(self, answer_tokens: int, before_end: int) -> None:
        self.partings += 1
        self.recent.append((answer_tokens, before_end))
        self.grid = best_grid(self.recent)

    def grid_for(self, prompts: float) -> int:
        """The grid, where so many prompts have been parted from often enough; else 0."""
        return self.grid if self.partings >= max(MIN_PARTINGS, MIN_SHARE * prompts) else 0


@dataclass(slots=True)
class _Class:
    number: int
    whole: _Class = None  # type: ignore[assignment]  # that it is part of; a whole has none, and isn't asked
    prompts: float = 0.0  # decayed
    went_through: float = 0.0  # likewise: those whose answer was repeated
    dropped: float = 0.0  # likewise: those that were parted from
    inside: _Inside = field(default_factory=_Inside)
    planned: int = 0
    answers: Answers = field(default_factory=Answers)
    partings: deque[tuple[int, int, int]] = field(  # (planned, least distance, largest one)
        default_factory=lambda: deque(maxlen=KEPT_PARTINGS)
    )

    def began(self) -> None:
        self.planned += 1
        self.prompts = self.prompts * _DECAY + 1
        self.went_through *= _DECAY
        self.dropped *= _DECAY
        self.inside.partings *= _DECAY

    def weight(self, planned: int) -> float:
        """What something counts that was seen when so many prompts had been planned."""
        return 0.5 ** ((self.planned - planned) / HALF_LIFE_PROMPTS)

    def parted(self) -> float:
        """Partings, decayed."""
        return sum(self.weight(at) for at, _, _ in self.partings)

    def farthest(self) -> tuple[int, ...]:
        """The largest distance before a prompt's end at which one parted; none where they seldom do."""
        if self.parted() < max(MIN_PARTINGS, MIN_SHARE * self.prompts):
            return ()
        return (max(high for _, _, high in self.partings),)


class InputEnds:
    """Counts of each class of prompts. Deterministic."""

    def __init__(self) -> None:
        self._classes: OrderedDict[tuple[int, bool], _Class] = OrderedDict()  # the least recent first
        self._by_number: dict[int, _Class] = {}
        self._whole = {goes_through: _Class(0) for goes_through in (False, True)}
        self._inside = _Inside()  # of all classes: what a new one begins with
        self._numbers = 0

    def parted(self, number: int, before_end: int, page_tokens: int = 1) -> None:
        """A prompt parts from an earlier one of class `number`, `before_end` tokens before that one's end, or up to
        a page nearer."""
        if (one := self._by_number.get(number)) is not None and before_end < TAIL_TOKENS + page_tokens:
            least = max(before_end - page_tokens + 1, 0)
            for counted in (one, one.whole):
                counted.dropped += 1
                counted.partings.append((counted.planned, least, min(before_end, TAIL_TOKENS)))

    def went_through(self, number: int, answer_end: int) -> None:
        """A prompt repeats one of class `number`, and what was answered to it, up to its last token."""
        if (one := self._by_number.get(number)) is not None:
            one.answers.repeated(answer_end)
            for counted in (one, one.whole):
                counted.went_through += 1

    def parted_inside(self, number: int, answer_tokens: int, before_end: int) -> None:
        """A prompt repeats one of class `number`, and what was answered to it but for so many tokens."""
        if (one := self._by_number.get(number)) is not None:
            for counted in (one, one.whole):
                counted.went_through += 1
            for inside in (one.inside, self._inside):
                inside.parted(answer_tokens, before_end)

    def answer_grid(self, number: int) -> int:
        """Tokens: answers to prompts of class `number` should leave a state at a multiple; 0: none."""
        if (one := self._by_number.get(number)) is None:
            return 0
        if one.planned <= FEW_PROMPTS and one.inside.partings < MIN_PARTINGS:
            return self._inside.grid_for(0.0)
        return one.inside.grid_for(one.prompts)

    def answered(self, number: int, answer_end: int) -> bool:
        """A prompt of class `number` got an answer that ends so. Returns: whether the state after it may serve."""
        one = self._by_number.get(number)
        if one is None:
            return True
        # a loop ends with an answer that the next prompt drops where it parts from the loop's first one
        parting = self._whole[False] if one.whole is self._whole[True] else one
        return one.answers.ended(answer_end, parting.dropped + one.inside.partings)

    def plan(
        self, last_token: int, goes_through: bool, known: InputEnd | None, *, guesses: bool = True
    ) -> Prompt:
        """A prompt of such an end.

        goes_through: it repeats an earlier one, and what was answered to it
        guesses: one of the very first prompts may get a guess
        """
        one = self._class(last_token if known is None else known.kind, goes_through)
        one.began()
        one.whole.began()
        self._inside.partings *= _DECAY
        if guesses and not goes_through and known is None and self._knows_nothing():
            return Prompt(one.number, (GUESS_TOKENS,), guessed=True)
        return Prompt(one.number, self._distances(one, None if goes_through else known))

    def _knows_nothing(self) -> bool:
        """Of the first prompts: how they go on hasn't been seen yet."""
        whole = self._whole[False]
        return (
            whole.planned <= GUESSED_PROMPTS
            and whole.parted() < MIN_PARTINGS
            and not any(one.went_through for one in self._whole.values())
        )

    def _class(self, kind: int, goes_through: bool) -> _Class:
        key = (kind, goes_through)
        if key not in self._classes:
            self._numbers += 1
            one = _Class(self._numbers, self._whole[key[1]])
            self._classes[key] = self._by_number[self._numbers] = one
            if len(self._classes) > KEPT_CLASSES:
                _, gone = self._classes.popitem(last=False)
                del self._by_number[gone.number]
        self._classes.move_to_end(key)
        return self._classes[key]

    def _distances(self, one: _Class, known: InputEnd | None) -> tuple[int, ...]:
        """Greedy: the distance that most partings agree with, then the one that most of the rest do."""
        if known is None and one.planned <= FEW_PROMPTS and one.parted() < MIN_PARTINGS:
            return one.whole.farthest()
        if known is None and not one.partings:
            return ()
        votes = np.zeros(TAIL_TOKENS + 1)
        if known is not None and (known.dropped or not known.keeps_answer):
            guessed = GUESSED_PARTINGS - one.went_through if one.parted() < MIN_PARTINGS else 0.0
            before = KNOWN_PARTINGS if known.known else guessed
            votes[known.dropped] = max(before, 0.0)
        left = [(one.weight(at), low, high) for at, low, high in one.partings]
        least = max(MIN_PARTINGS, MIN_SHARE * one.prompts)
        chosen: list[int] = []
        for _ in range(PLACES):
            found = votes.copy()
            for weight, low, high in left:
                found[low : high + 1] += weight
            best = TAIL_TOKENS - int(found[::-1].argmax())  # of equals the farthest: all its partings have it
            if found[best] < least:
                break
            chosen.append(best)
            left = [parting for parting in left if not parting[1] <= best <= parting[2]]
            votes[best] = 0.0
        return tuple(sorted(chosen))
