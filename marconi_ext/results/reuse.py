"""What the answered requests of a run reused and lost, added up: the figures that every report of a run shares."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from marconi_ext.results.ideal import Reusable, split_loss
from marconi_ext.results.percent import percent


@dataclass(frozen=True)
class Reuse:
    """Sums in tokens.

    cached_tokens: reused, by the server's word
    ideal_tokens: what an unlimited attention-only radix cache would have reused
    first_divergence_tokens, avoidable_tokens: ideal tokens computed again, by cause
    """

    prompt_tokens: int
    cached_tokens: int
    ideal_tokens: int
    first_divergence_tokens: int
    avoidable_tokens: int

    def rates(self) -> dict[str, float]:
        """By name, in % of prompt tokens."""
        lost = self.first_divergence_tokens + self.avoidable_tokens
        parts = {
            "hit_rate": self.cached_tokens,
            "ideal_hit_rate": self.ideal_tokens,
            "state_limited_loss": lost,
            "first_divergence": self.first_divergence_tokens,
            "avoidable": self.avoidable_tokens,
        }
        return {name: percent(tokens, self.prompt_tokens) for name, tokens in parts.items()}


def add_up(requests: Iterable[tuple[int, int | None, Reusable]]) -> Reuse:
    """requests: of each its prompt's tokens, those its server says were cached, if it says, and what could be reused"""
    prompt = cached = ideal = first = avoidable = 0
    for prompt_tokens, cached_tokens, reusable in requests:
        prompt += prompt_tokens
        ideal += reusable.ideal_tokens
        cached += cached_tokens or 0
        loss = split_loss(reusable, cached_tokens or 0)
        first += loss.first_divergence_tokens
        avoidable += loss.avoidable_tokens
    return Reuse(prompt, cached, ideal, first, avoidable)
