"""Admission: at which positions of a sequence a state is offered to the cache."""

from __future__ import annotations

from dataclasses import dataclass

from marconi_ext.policies.checkpoints import Kind


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
    records: tuple[tuple[int, int], ...] = ()  # (depth, kind) of all records on the matched path


@dataclass(frozen=True, slots=True)
class Offer:
    """One state to save.

    displaced: wanted, but the engine has no room for it in this extend
    probe: save nothing; only remember the position, to learn whether a state there would have been of use
    spare: only where room is free: not worth evicting anything
    """

    depth_tokens: int
    kind: Kind
    displaced: bool = False
    probe: bool = False
    spare: bool = False


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
    """The branch point, the prompt's end and the last token, all exact."""

    grid_tokens = 1

    def plan(self, facts: PromptFacts) -> list[Offer]:
        offers = [*_branch(facts, 1)]
        if facts.prompt_tokens < facts.sequence_tokens:
            offers.append(Offer(facts.prompt_tokens, Kind.PROMPT_END))
        offers.append(Offer(facts.sequence_tokens, Kind.LAST_TOKEN))
        return offers


class Selective:
    """As `Exact`, but a branch must gain max(8, min(64, match/8)) tokens or find room free, and proven forks are
    saved again.

    Requests match a few words past the real fork by chance; each would save a useless, deeper branch.
    """

    grid_tokens = 1

    def plan(self, facts: PromptFacts) -> list[Offer]:
        offers = {}
        gain = max(8, min(64, facts.kv_tokens // 8))
        for fork in facts.proven_forks:
            if fork > facts.hit_tokens:
                offers[fork] = Offer(fork, Kind.BRANCH)
        # a branch just past a fork that this request passed anyway adds little: measure from that fork
        floor = max(facts.hit_tokens, *offers) if offers else facts.hit_tokens
        if facts.diverges and facts.kv_tokens > floor:
            spare = facts.kv_tokens - floor < gain
            offers[facts.kv_tokens] = Offer(facts.kv_tokens, Kind.BRANCH, spare=spare)
        if facts.prompt_tokens < facts.sequence_tokens:
            offers[facts.prompt_tokens] = Offer(facts.prompt_tokens, Kind.PROMPT_END)
        offers[facts.sequence_tokens] = Offer(facts.sequence_tokens, Kind.LAST_TOKEN)
        return [offers[depth] for depth in sorted(offers)]


class Foresight(Selective):
    """`Selective` and message boundaries: the first message's end and the last one's, so that a shared prefix
    is reused on its second appearance and not only on its third."""

    def plan(self, facts: PromptFacts) -> list[Offer]:
        return self._with_boundaries(facts, super().plan(facts), probe=False)

    @staticmethod
    def _with_boundaries(facts: PromptFacts, offers: list[Offer], *, probe: bool) -> list[Offer]:
        by_depth = {offer.depth_tokens: offer for offer in offers}
        inside = [b for b in facts.boundaries if facts.hit_tokens < b < facts.prompt_tokens]
        for boundary in {*inside[:1], *inside[-1:]}:
            by_depth.setdefault(boundary, Offer(boundary, Kind.BOUNDARY, probe=probe))
        return [by_depth[depth] for depth in sorted(by_depth)]


class LearnedPlacement(Foresight):
    """`Selective`, and boundaries where they have been worth it: where states there would have added more than
    a share of the prompt tokens to what all other records gave. Else every fourth request only probes them."""

    PROBE_EVERY = 4
    MIN_GAIN = 0.03  # of the prompt tokens: below it, boundaries crowd out what is worth more
    MIN_SEEN = 6  # requests that would have gained: one or two are chance
    HALF_LIFE_REQUESTS = 500

    def __init__(self) -> None:
        self._seen = 0.0
        self._requests = 0
        self._gained = 0.0  # tokens, decayed
        self._prompts = 20_000.0  # so that one lucky prompt at the start decides nothing
        self.on = False

    def plan(self, facts: PromptFacts) -> list[Offer]:
        self._learn(facts)
        offers = Selective.plan(self, facts)
        self._requests += 1
        if self.on or self._requests % self.PROBE_EVERY == 0:
            return self._with_boundaries(facts, offers, probe=not self.on)
        return offers

    def _learn(self, facts: PromptFacts) -> None:
        boundary = max((depth for depth, kind in facts.records if kind == Kind.BOUNDARY), default=0)
        other = max((depth for depth, kind in facts.records if kind != Kind.BOUNDARY), default=0)
        decay = 0.5 ** (1 / self.HALF_LIFE_REQUESTS)
        weight = 1 if self.on else self.PROBE_EVERY
        self._seen = self._seen * decay + (boundary > other)
        self._gained = self._gained * decay + weight * max(boundary - other, 0)
        self._prompts = self._prompts * decay + facts.prompt_tokens
        share = self._gained / self._prompts
        enough = self.on or self._seen >= self.MIN_SEEN
        self.on = enough and share > self.MIN_GAIN * (0.5 if self.on else 1.0)  # some inertia


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
    "learned": LearnedPlacement,
}
