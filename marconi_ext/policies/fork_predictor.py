"""Where requests part: learned, so that a shared prefix is reused at its second appearance, not its third.

A branch point is known once a second request has left it. To have a state there before, one has to guess, at the
first request, where later ones will part from it. Three kinds of *places* can be told from a prompt alone:

- the first or the last message boundary, where the engine knows them;
- just after the first or last occurrence of one token (a separator, a role, the `Q` of a question);
- a distance before the prompt's end (the own part of few-shot prompts is about equally long).

Whenever a request parts from what is held, deeper than any state placed otherwise would have been, each place is
scored by the tokens that a state there would have saved. It is looked up in the request that parts, standing in
for the earlier one that it parts from: the two are taken to be alike. The best place, and a second one if that
adds as much again, are used while they pay.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

import numpy as np

Place = tuple[str, int]  # ("first boundary", 0), ("after the last", token), ("before the end", tokens), …

MIN_GAIN = 0.01  # of the prompt tokens: below it, such states crowd out what is worth more
MIN_PARTINGS = 4  # that would have gained: fewer may be chance
PRIOR_TOKENS = 10_000.0  # of prompts without any gain
HALF_LIFE_REQUESTS = 500
GUESS: Place = ("before the end", 181)
GUESSED_REQUESTS = 64
KEPT_PARTINGS = 64
REVIEW_REQUESTS = 32  # without a parting, until the places are judged again
KEPT_PLACES = 1024  # that have a number
KEPT_TOKENS = 48  # candidates for separators
TOKEN_LIMIT = (
    1 << 20
)  # above any vocabulary: an engine's stand-ins for images, hashes of 62 bits, separate nothing
LOOK_BACK = 8  # tokens before a parting that become candidates
DISTANCES = tuple(int(2 ** (k / 2)) for k in range(6, 25))  # 8 to 4096, by half octaves


@dataclass(frozen=True, slots=True)
class _Gains:
    """What one parting would have gained: by place, the places' numbers in the same order, and the gains in it."""

    at: int  # request
    gains: dict[Place, int]
    numbers: np.ndarray
    amounts: np.ndarray


class ForkPredictor:
    """`places` are those in use, at most two; they change with each parting observed."""

    def __init__(self) -> None:
        self.places: tuple[Place, ...] = ()
        self._candidates: OrderedDict[int, None] = OrderedDict()  # token -> nothing, least recent first
        self._gains: deque[_Gains] = deque(maxlen=KEPT_PARTINGS)
        self._numbers: dict[Place, int] = {}  # of the places in `_gains`, and of some that were
        self._prompt_tokens = 0.0  # decayed
        self._requests = 0

    def observe(
        self,
        tokens: np.ndarray | None,
        boundaries: tuple[int, ...],
        prompt_tokens: int,
        base: int,
        parted: int,
    ) -> None:
        """A request of `prompt_tokens`; where it parts at `parted` > `base`, a state between would have saved.

        base: the deepest position on its way at which a state was or will be placed anyway
        """
        self._requests += 1
        self._prompt_tokens = self._prompt_tokens * 0.5 ** (1 / HALF_LIFE_REQUESTS) + prompt_tokens
        if parted <= base:
            if self.places and self._requests % REVIEW_REQUESTS == 0:
                self._choose()
            return
        found = self._fixed_places(boundaries, prompt_tokens, base) | self._token_places(tokens, base)
        gains = {place: position - base for place, position in found.items() if base < position <= parted}
        if len(self._numbers) > KEPT_PLACES:
            self._number_anew()
        numbers = [self._numbers.setdefault(place, len(self._numbers)) for place in gains]
        amounts = np.array(list(gains.values()), np.int64)
        self._gains.append(_Gains(self._requests, gains, np.array(numbers, np.int64), amounts))
        if tokens is not None:
            for token in tokens[max(parted - LOOK_BACK, base) : parted].tolist():
                if not 0 <= token < TOKEN_LIMIT:
                    continue
                self._candidates[token] = None
                self._candidates.move_to_end(token)
            while len(self._candidates) > KEPT_TOKENS:
                self._candidates.popitem(last=False)
        self._choose()

    def positions(
        self, tokens: np.ndarray | None, boundaries: tuple[int, ...], prompt_tokens: int, after: int
    ) -> list[int]:
        """Where to save a state in this prompt, beyond `after` tokens; ascending."""
        return self._inside(self.places, tokens, boundaries, prompt_tokens, after)

    def guesses(self, boundaries: tuple[int, ...], prompt_tokens: int, after: int) -> list[int]:
        """Where a state might pay as long as nothing is known: worth a free slot, and nobody else's."""
        if self.places or self._requests > GUESSED_REQUESTS:
            return []
        inside = any(after < b < prompt_tokens for b in boundaries)
        guess: Place = ("last boundary", 0) if inside else GUESS
        return self._inside((guess,), None, boundaries, prompt_tokens, after)

    def _inside(
        self,
        places: tuple[Place, ...],
        tokens: np.ndarray | None,
        boundaries: tuple[int, ...],
        prompt_tokens: int,
        after: int,
    ) -> list[int]:
        found = {self._position(place, tokens, boundaries, prompt_tokens, after) for place in places}
        return sorted(position for position in found if after < position < prompt_tokens)

    def _fixed_places(self, boundaries: tuple[int, ...], prompt_tokens: int, after: int) -> dict[Place, int]:
        """Places that no token tells: position of each."""
        places: list[Place] = [("before the end", distance) for distance in DISTANCES]
        if boundaries:
            places += [("first boundary", 0), ("last boundary", 0)]
        return {place: self._position(place, None, boundaries, prompt_tokens, after) for place in places}

    def _token_places(self, tokens: np.ndarray | None, after: int) -> dict[Place, int]:
        """Places after a candidate token, all in one pass: prompts may have 100,000 tokens."""
        if tokens is None or not self._candidates:
            return {}
        candidates = list(self._candidates)
        table = np.full(max(candidates) + 2, -1, np.int8)  # its end stands for all tokens beyond
        table[candidates] = np.arange(len(candidates))
        marks = table.take(tokens[after:], mode="clip")
        where = np.flatnonzero(marks >= 0)
        marks = marks[where]
        first, last = np.full((2, len(candidates)), -1)
        last[marks] = where  # of several, the last one written stays
        first[marks[::-1]] = where[::-1]
        places = {}
        for number, token in enumerate(candidates):
            if last[number] >= 0:
                places["after the first", token] = after + 1 + int(first[number])
                places["after the last", token] = after + 1 + int(last[number])
        return places

    @staticmethod
    def _position(
        place: Place, tokens: np.ndarray | None, boundaries: tuple[int, ...], prompt_tokens: int, after: int
    ) -> int:
        """Tokens up to the place; 0 where the prompt has none."""
        kind, amount = place
        if kind == "before the end":
            return prompt_tokens - amount
        if kind.endswith("boundary"):
            inside = [b for b in boundaries if after < b < prompt_tokens]
            return 0 if not inside else inside[0] if kind == "first boundary" else inside[-1]
        if tokens is None:
            return 0
        found = np.flatnonzero(tokens[after:] == amount)
        return 0 if len(found) == 0 else after + 1 + int(found[0 if kind == "after the first" else -1])

    def _choose(self) -> None:
        """Greedy: the best place, then the one that adds most to it; each must gain enough of all prompt tokens."""
        kept, places = self._gains, list(self._numbers)
        lengths = [len(one.gains) for one in kept]
        weights = np.repeat(
            [0.5 ** ((self._requests - one.at) / HALF_LIFE_REQUESTS) for one in kept], lengths
        )
        numbers = np.concatenate([one.numbers for one in kept]) if kept else np.empty(0, np.int64)
        gains = np.concatenate([one.amounts for one in kept]) if kept else np.empty(0, np.int64)
        had = [0] * len(kept)
        chosen: list[Place] = []
        while len(chosen) < 2:
            more = gains - np.repeat(had, lengths)
            adds = np.flatnonzero(more > 0)
            added = np.bincount(numbers[adds], (weights * more)[adds], minlength=len(places))
            seen = np.bincount(numbers[adds], minlength=len(places))
            least = MIN_GAIN * (0.5 if set(self.places) - set(chosen) else 1.0)  # some inertia
            least *= self._prompt_tokens + PRIOR_TOKENS
            good = np.flatnonzero((added >= least) & (seen >= MIN_PARTINGS)).tolist()
            if not good:
                break
            best = places[max(good, key=lambda number: (added[number], places[number]))]
            chosen.append(best)
            had = [max(before, one.gains.get(best, 0)) for before, one in zip(had, kept, strict=True)]
        self.places = tuple(chosen)

    def _number_anew(self) -> None:
        """Forget the numbers of places that no kept parting names."""
        self._numbers.clear()
        for one in self._gains:
            for i, place in enumerate(one.gains):
                one.numbers[i] = self._numbers.setdefault(place, len(self._numbers))
