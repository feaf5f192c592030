"""Which answers aren't those of an empty cache: other tokens, or logprobs that differ by more than rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

ATOL = 1e-4


class Answered(Protocol):
    """An answer, however it was asked for: its tokens, and the logprob of each."""

    @property
    def output_ids(self) -> list[int]: ...

    @property
    def logprobs(self) -> list[float]: ...


def unequal(answers: Sequence[Answered], alone: Sequence[Answered]) -> list[int]:
    """Numbers of the requests whose answer isn't that given alone, with an empty cache."""
    return [
        number
        for number, (one, other) in enumerate(zip(answers, alone, strict=True))
        if one.output_ids != other.output_ids
        or not np.allclose(one.logprobs, other.logprobs, atol=ATOL, rtol=0)
    ]
