"""Where states inside answers lie, for clients that send an answer back changed: trimmed, or a call written anew.

The next prompt then repeats a part of the answer, and the state after its last token serves nobody. Where that was seen
of a class of prompts, an answer leaves a state at the last multiple of some tokens before its end as well: one slot,
filled anew at each multiple while the answer grows, for nobody knows where it will end. A fine grid leaves the state
near the change, a coarse one seldom leaves it behind: which is best follows from how far before the end prompts part.
"""

from __future__ import annotations

from collections.abc import Collection

GRIDS = (16, 32, 64, 128, 256)  # tokens
MIN_SAVED = 4  # tokens, in the mean: for fewer no state is saved


def places(prompt_tokens: int, sequence_tokens: int, grid: int) -> range:
    """Of a prompt with its answer: the tokens up to each place inside the answer. grid: 0: there is none"""
    return range(prompt_tokens // grid * grid + grid, sequence_tokens + 1, grid) if grid else range(0)


def last_place(prompt_tokens: int, sequence_tokens: int, grid: int) -> int:
    """The last of `places`; 0: there is none."""
    found = places(prompt_tokens, sequence_tokens, grid)
    return found[-1] if found else 0


def tokens_saved(grid: int, answer_tokens: int, before_end: int) -> float:
    """What a state on the grid saves a prompt that parts so far before an answer's end: the mean over all ends."""
    first, last = before_end, min(grid, answer_tokens) - 1  # distances of a state from the end
    return max(last - first + 1, 0) * (answer_tokens - (first + last) / 2) / grid


def best_grid(partings: Collection[tuple[int, int]]) -> int:
    """The grid that saves most; 0: none saves enough. partings: (tokens of the answer, before its end), not empty"""
    saved = {grid: sum(tokens_saved(grid, *parting) for parting in partings) for grid in GRIDS}
    best = max(GRIDS, key=lambda grid: saved[grid])
    return best if saved[best] >= MIN_SAVED * len(partings) else 0
