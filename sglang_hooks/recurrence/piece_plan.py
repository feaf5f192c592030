"""Where an extend is cut: rounds of pieces, and forks beside them. Host arithmetic alone, no SGLang.

A checkpoint inside an extend is saved in one of two ways. **Cut**: the layer runs the extend in two pieces and the
running slot is copied in between. **Fork**: one more sequence runs the same tokens in the checkpoint's slot, from a
copy of the state that the piece begins with. A cut costs another round of the layer's kernels, a fork costs its
tokens. A checkpoint at the extend's end costs a copy and neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_CUTS = 3
"""Inside one extend. FLA caches the chunk indices of four batches: a fifth would wait for the device in each layer."""

FORK_TOKENS = 256
"""An extend's forks may repeat this many tokens before a cut is taken instead: about what a cut costs on the CPU
engine's operators (`bench/cut_or_fork.py`: 311 tokens for Gated DeltaNet, 238 for KDA; no GPU has measured it). A
prompt's end lies one token before its extend's, so most short extends fork, and long ones run that token as a round."""


@dataclass(frozen=True)
class Span:
    """Tokens [start, stop) of one request's extend, run as one sequence.

    row: of the batch
    checkpoint: of a fork: which checkpoint's slot it runs in; None: a piece, in the running slot
    """

    row: int
    start: int
    stop: int
    checkpoint: int | None = None


@dataclass(frozen=True)
class Copy:
    """A state to copy to a checkpoint's slot. source: that of a row's running slot, or of another checkpoint."""

    checkpoint: int
    row: int
    source_checkpoint: int | None = None


@dataclass(frozen=True)
class Round:
    """One run of the layer's kernels. before: states for the forks; after: states for the cuts.
    Pieces come first in spans, then forks."""

    spans: tuple[Span, ...]
    before: tuple[Copy, ...]
    after: tuple[Copy, ...]

    @property
    def pieces(self) -> int:
        return sum(span.checkpoint is None for span in self.spans)


@dataclass(frozen=True)
class PiecePlan:
    """rounds: one where nothing is cut. at_end: states to copy when the extend is through."""

    rounds: tuple[Round, ...]
    at_end: tuple[Copy, ...]

    @property
    def cuts(self) -> int:
        return len(self.rounds) - 1

    @property
    def forked_tokens(self) -> int:
        return sum(s.stop - s.start for r in self.rounds for s in r.spans if s.checkpoint is not None)

    @property
    def plain(self) -> bool:
        """Whether the layer's own run of the whole batch is all that is needed."""
        return len(self.rounds) == 1 and not self.rounds[0].before


def forked_tokens(offsets: Sequence[int], cuts: Sequence[int]) -> int:
    """Tokens that forks repeat where these of the checkpoints' offsets are cuts."""
    return sum(offset - max((cut for cut in cuts if cut <= offset), default=0) for offset in offsets)


def choose_cuts(offsets: Sequence[int], most: int = MAX_CUTS, fork_tokens: int = FORK_TOKENS) -> list[int]:
    """Which offsets inside an extend to cut at, ascending; the others are forked.

    Takes the cut that spares most, while forks would repeat more than `fork_tokens` and fewer than `most` are taken.
    """
    cuts: list[int] = []
    while len(cuts) < most and forked_tokens(offsets, cuts) > fork_tokens:
        cuts.append(
            min((o for o in offsets if o not in cuts), key=lambda o: forked_tokens(offsets, [*cuts, o]))
        )
    return sorted(cuts)


def plan_pieces(
    lengths: Sequence[int],
    rows: Sequence[int],
    offsets: Sequence[int],
    most: int = MAX_CUTS,
    fork_tokens: int = FORK_TOKENS,
) -> PiecePlan:
    """Plan a batch. lengths: tokens of each row's extend; rows, offsets: of each checkpoint, 0 < offset <= length.

    Raises: ValueError for an offset outside its extend.
    """
    at: list[dict[int, list[int]]] = [{} for _ in lengths]
    for checkpoint, (row, offset) in enumerate(zip(rows, offsets, strict=True)):
        if not 0 < offset <= lengths[row]:
            raise ValueError(
                f"checkpoint {checkpoint}: offset {offset} of an extend of {lengths[row]} tokens"
            )
        at[row].setdefault(offset, []).append(checkpoint)
    at_end = [Copy(c, row) for row, length in enumerate(lengths) for c in at[row].get(length, ())]
    inner = [sorted(o for o in at[row] if o < lengths[row]) for row in range(len(lengths))]
    cuts = [choose_cuts(offsets, most, fork_tokens) for offsets in inner]
    rounds = []
    for number in range(1 + max(map(len, cuts), default=0)):
        pieces, forks, before, after = [], [], [], []
        for row, length in enumerate(lengths):
            bounds = [0, *cuts[row], length]
            if number + 1 >= len(bounds):
                continue
            start, stop = bounds[number], bounds[number + 1]
            pieces.append(Span(row, start, stop))
            if stop < length:
                after += [Copy(checkpoint, row) for checkpoint in at[row][stop]]
            for offset in inner[row]:
                if start < offset < stop:
                    first, *others = at[row][offset]
                    forks.append(Span(row, start, offset, first))
                    before.append(Copy(first, row))
                    after += [Copy(other, row, first) for other in others]
        rounds.append(Round((*pieces, *forks), tuple(before), tuple(after)))
    return PiecePlan(tuple(rounds), tuple(at_end))
