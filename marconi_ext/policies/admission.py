"""Admission: at which positions of a sequence a state is offered to the cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from marconi_ext.policies.answer_grid import last_place
from marconi_ext.policies.fork_predictor import ForkPredictor
from marconi_ext.policies.input_ends import InputEnds, Prompt
from marconi_ext.policies.messages import InputEnd
from marconi_ext.policies.table.checkpoints import Kind


@dataclass(frozen=True, slots=True)
class PromptFacts:
    """What is known of a request when its states are planned. All positions are token counts from its start."""

    prompt_tokens: int
    sequence_tokens: int  # prompt and output with KV
    hit_tokens: int  # the state that serves it
    kv_tokens: int  # KV that the cache holds of it
    diverges: bool  # another continuation is held beyond kv_tokens
    boundaries: tuple[int, ...] = ()  # ends of messages inside the prompt
    proven_forks: tuple[int, ...] = ()  # ghosts above kv_tokens at which earlier requests parted
    unplaced_tokens: int = 0  # deepest record on the path, but for guesses of where requests part
    parted_tokens: int = 0  # deepest record on the path from which earlier requests have parted already
    tokens: np.ndarray | None = None  # int32[prompt_tokens], where the engine hands them over
    input_end: InputEnd | None = None  # what is known of this prompt's
    saves_input_ends: bool = True  # whether the server may save a state there
    parted_before_end: tuple[int, int] | None = None  # (class of an earlier prompt, tokens before its end)
    # (class of an earlier prompt repeated with its answer, the last token of that, whether as the first)
    went_through: tuple[int, int, bool] | None = None
    # (class of an earlier prompt repeated with a part of its answer, tokens of that, of them not repeated, whether as
    # the first)
    parted_inside: tuple[int, int, int, bool] | None = None
    page_tokens: int = 1


@dataclass(frozen=True, slots=True)
class Offer:
    """One state to save.

    displaced: wanted, but the engine has no room for it in this extend
    spare: only where room is free: not worth evicting anything
    prompt_tokens, prompt_class: where a prompt ends here, its length and its class; else 0
    """

    depth_tokens: int
    kind: Kind
    displaced: bool = False
    spare: bool = False
    prompt_tokens: int = 0
    prompt_class: int = 0


class EveryBlock:
    """vLLM+: a state at each multiple of the block, prompt and output alike. Hits round down to blocks."""

    def __init__(self, block_tokens: int = 32) -> None:
        self.grid_tokens = block_tokens

    def plan(self, facts: PromptFacts) -> list[Offer]:
        first = facts.hit_tokens // self.grid_tokens + 1
        last = facts.sequence_tokens // self.grid_tokens
        return [Offer(i * self.grid_tokens, Kind.BLOCK) for i in range(first, last + 1)]


class Grid:
    """SGLang's extra buffer: one state an extend, on the chunk grid; a branch replaces the tail; decode states
    at multiples of the interval, the last of them kept.

    Source: SGLang 0.5.23, `_mamba_radix_cache_v2_req_prepare_for_extend`, `mamba_track_interval`.
    """

    def __init__(self, grid_tokens: int = 256, decode_interval: int = 256, prefill_chunk: int = 8192) -> None:
        self.grid_tokens = grid_tokens
        self.decode_interval = decode_interval
        self.prefill_chunk = prefill_chunk

    def plan(self, facts: PromptFacts) -> list[Offer]:
        offers = []
        branch = facts.kv_tokens // self.grid_tokens * self.grid_tokens if facts.diverges else 0
        start = facts.hit_tokens
        while start < facts.prompt_tokens:
            end = min(start + self.prefill_chunk, facts.prompt_tokens)
            tail = start + (end - start) // self.grid_tokens * self.grid_tokens
            takes_branch = start < branch <= end
            if takes_branch:
                offers.append(Offer(branch, Kind.BRANCH))
            if tail > start and tail != branch:
                offers.append(Offer(tail, Kind.GRID, displaced=takes_branch))
            start = end
        decoded = facts.sequence_tokens // self.decode_interval * self.decode_interval
        if decoded > facts.prompt_tokens:
            offers.append(Offer(decoded, Kind.GRID))
        return offers


class Judicious:
    """The paper: the branch point, where the prompt would split an edge, and the last token."""

    grid_tokens = 1

    def plan(self, facts: PromptFacts) -> list[Offer]:
        return [*_branch(facts, 1), Offer(facts.sequence_tokens, Kind.LAST_TOKEN)]


class Exact:
    """The branch point, the prompt's end, the end of its input where that isn't the same, and the last token.

    The prompt's end is its last token but one: a prompt that comes again is served up to there, for its last token
    must be computed.
    """

    grid_tokens = 1
    guesses = False  # nothing but what was seen

    def __init__(self) -> None:
        self.input_ends = InputEnds()

    def plan(self, facts: PromptFacts) -> list[Offer]:
        return self._with_ends(facts, _branch(facts, 1))

    def answered(self, prompt_class: int, answer_end: int) -> bool:
        """A prompt's answer ended with this token. Returns: whether the state after it may serve."""
        return self.input_ends.answered(prompt_class, answer_end)

    def answer_grid(self, prompt_class: int) -> int:
        """Tokens: answers to prompts of a class should leave a state at a multiple; 0: none."""
        return self.input_ends.answer_grid(prompt_class)

    def _with_ends(self, facts: PromptFacts, inside: list[Offer]) -> list[Offer]:
        if facts.parted_before_end is not None:
            self.input_ends.parted(*facts.parted_before_end, facts.page_tokens)
        if facts.went_through is not None and facts.went_through[2]:
            self.input_ends.went_through(*facts.went_through[:2])
        if facts.parted_inside is not None and facts.parted_inside[3]:
            self.input_ends.parted_inside(*facts.parted_inside[:3])
        goes_through = facts.went_through is not None or facts.parted_inside is not None
        last = 0 if facts.tokens is None else facts.tokens.item(-1)
        guesses = self.guesses and facts.saves_input_ends
        prompt = self.input_ends.plan(last, goes_through, facts.input_end, guesses=guesses)
        ends = _ends(facts, prompt, self.answer_grid(prompt.number))
        offers = {offer.depth_tokens: offer for offer in [*inside, *ends]}
        return [offers[depth] for depth in sorted(offers)]


class Selective(Exact):
    """As `Exact`, but a branch must gain max(8, min(64, match/8)) tokens or find room free, and proven forks are
    saved again.

    Requests match a few words past the real fork by chance; each would save a useless, deeper branch.
    """

    guesses = True  # in free slots

    def plan(self, facts: PromptFacts) -> list[Offer]:
        offers = {}
        gain = max(8, min(64, facts.kv_tokens // 8))
        floor = facts.hit_tokens
        for fork in sorted({*facts.proven_forks, *([facts.kv_tokens] if facts.diverges else [])}):
            spare = fork - floor < gain
            if fork > floor and not (spare and facts.parted_before_end):  # the next turn parts farther down
                offers[fork] = Offer(fork, Kind.BRANCH, spare=spare)
                floor = floor if spare else fork
        return self._with_ends(facts, list(offers.values()))


class Foresight(Selective):
    """`Selective` and message boundaries: the first message's end and the last one's, so that a shared prefix
    is reused on its second appearance and not only on its third."""

    def plan(self, facts: PromptFacts) -> list[Offer]:
        inside = [b for b in facts.boundaries if facts.hit_tokens < b < facts.prompt_tokens]
        return _with_boundaries(super().plan(facts), [*inside[:1], *inside[-1:]])


class ForkPredicting(Selective):
    """`Selective`, and at most two more states where requests have been seen to part: see `fork_predictor.py`."""

    def __init__(self) -> None:
        super().__init__()
        self.predictor = ForkPredictor()

    def plan(self, facts: PromptFacts) -> list[Offer]:
        self.predictor.observe(
            facts.tokens,
            facts.boundaries,
            facts.prompt_tokens,
            base=max(facts.parted_tokens, facts.unplaced_tokens),
            parted=facts.kv_tokens if facts.diverges and facts.kv_tokens < facts.prompt_tokens - 1 else 0,
        )
        if (
            facts.kv_tokens and not facts.diverges
        ):  # it goes on where an earlier one ended: no new prefix begins
            return super().plan(facts)
        prompt = facts.boundaries, facts.prompt_tokens, facts.hit_tokens
        offers = _with_boundaries(super().plan(facts), self.predictor.positions(facts.tokens, *prompt))
        return _with_boundaries(offers, self.predictor.guesses(*prompt), spare=True)


def _with_boundaries(offers: list[Offer], positions: list[int], *, spare: bool = False) -> list[Offer]:
    by_depth = {position: Offer(position, Kind.BOUNDARY, spare=spare) for position in positions}
    by_depth |= {
        offer.depth_tokens: offer for offer in offers if not (offer.spare and offer.depth_tokens in by_depth)
    }
    return [by_depth[depth] for depth in sorted(by_depth)]


def _ends(facts: PromptFacts, prompt: Prompt, answer_grid: int) -> list[Offer]:
    """The ends of the prompt's input, of the prompt and of the sequence; and the last place inside its answer."""
    end = facts.prompt_tokens - 1
    inputs = {min(facts.prompt_tokens - distance, end) for distance in prompt.distances}
    inside = Kind.BOUNDARY if prompt.guessed else Kind.INPUT_END
    offers = [Offer(depth, inside, spare=prompt.guessed) for depth in inputs if 0 < depth < end]
    if end > 0:
        kind = Kind.INPUT_END if end in inputs else Kind.PROMPT_END
        offers.append(Offer(end, kind, prompt_tokens=facts.prompt_tokens, prompt_class=prompt.number))
    place = last_place(facts.prompt_tokens, facts.sequence_tokens, answer_grid)
    if place:
        offers.append(Offer(place, Kind.IN_ANSWER))
    if facts.sequence_tokens > facts.prompt_tokens:
        offers.append(Offer(facts.sequence_tokens, Kind.LAST_TOKEN))
    return offers


def _branch(facts: PromptFacts, gain_tokens: int) -> list[Offer]:
    if facts.diverges and facts.kv_tokens - facts.hit_tokens >= gain_tokens:
        return [Offer(facts.kv_tokens, Kind.BRANCH)]
    return []


ADMISSIONS = {
    "every-block": EveryBlock,
    "grid": Grid,
    "judicious": Judicious,
    "exact": Exact,
    "selective": Selective,
    "foresight": Foresight,
    "fork-predictor": ForkPredicting,
}
