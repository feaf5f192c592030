"""Where an extend is cut: rounds of pieces, and forks beside them. Host arithmetic alone, no SGLang.

A checkpoint inside an extend is saved in one of two ways. **Cut**: the layer runs the extend in two pieces and the
running slot is copied in between. **Fork**: one more sequence runs the same tokens in the checkpoint's slot, from a
copy of the state that the piece begins with. A cut costs another round of the layer's kernels, a fork costs its
tokens. A checkpoint at the extend's end costs a copy and neither.

A prompt's end lies one token before its extend's. Where the family has a step for one token, as in decode, the last
tokens of all extends that need it are one round of such steps, which costs a fraction of another prefill.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

MAX_CUTS = 3
"""Inside one extend. FLA caches the chunk indices of four batches: a fifth would wait for the device in each layer."""

FORK_TOKENS = 256
"""An extend's forks may repeat this many tokens before a cut is taken instead: about what a cut costs on the CPU
engine's operators (`bench/cut_or_fork.py`: 311 tokens for Gated DeltaNet, 238 for KDA; no GPU has measured it)."""

STEP_TOKENS = 80
"""What a round of last tokens costs, in forked tokens: a third of a cut's operator calls (`bench/cut_or_fork.py`: 86 of
269 for Gated DeltaNet, 87 of 325 for KDA). It is run where it spares more than that, in all extends together."""


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
    Pieces come first in spans, then forks. is_step: each span is one token, the last of its extend"""

    spans: tuple[Span, ...]
    before: tuple[Copy, ...]
    after: tuple[Copy, ...]
    is_step: bool = False

    @property
    def pieces(self) -> int:
        return sum(span.checkpoint is None for span in self.spans)


@dataclass(frozen=True)
class PiecePlan:
    """rounds: one where nothing is cut. at_end: states to copy when the extend is through."""

    rounds: tuple[Round, ...]
    at_end: tuple[Copy, ...]

    @property
    def steps(self) -> int:
        """Rounds of last tokens: one or none."""
        return sum(round_.is_step for round_ in self.rounds)

    @property
    def cuts(self) -> int:
        return len(self.rounds) - 1 - self.steps

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
    *,
    most: int = MAX_CUTS,
    fork_tokens: int = FORK_TOKENS,
    step_tokens: int | None = None,
) -> PiecePlan:
    """Plan a batch. lengths: tokens of each row's extend; rows, offsets: of each checkpoint, 0 < offset <= length.

    step_tokens: what a round of last tokens costs, in forked tokens; None: the family has no step, and a checkpoint
        one token before its extend's end is cut or forked like any other
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
    last = [row for row, length in enumerate(lengths) if length - 1 in at[row]]
    if step_tokens is None or _spared(at, lengths, last, most, fork_tokens) <= step_tokens:
        last = []
    stops = [length - (row in last) for row, length in enumerate(lengths)]  # of what is prefilled
    inner = [sorted(o for o in at[row] if o < stop) for row, stop in enumerate(stops)]
    cuts = [choose_cuts(offsets, most, fork_tokens) for offsets in inner]
    rounds = []
    for number in range(1 + max(map(len, cuts), default=0)):
        pieces, forks, before, after = [], [], [], []
        for row, end in enumerate(stops):
            bounds = [0, *cuts[row], end]
            if number + 1 >= len(bounds):
                continue
            start, stop = bounds[number], bounds[number + 1]
            pieces.append(Span(row, start, stop))
            if stop < lengths[row]:
                after += [Copy(checkpoint, row) for checkpoint in at[row][stop]]
            for offset in inner[row]:
                if start < offset < stop:
                    first, *others = at[row][offset]
                    forks.append(Span(row, start, offset, first))
                    before.append(Copy(first, row))
                    after += [Copy(other, row, first) for other in others]
        rounds.append(Round((*pieces, *forks), tuple(before), tuple(after)))
    if last:
        steps = tuple(Span(row, lengths[row] - 1, lengths[row]) for row in last)
        rounds.append(Round(steps, (), (), is_step=True))
    return PiecePlan(tuple(rounds), tuple(at_end))


def _spared(
    at: Sequence[Collection[int]], lengths: Sequence[int], last: Sequence[int], most: int, fork_tokens: int
) -> int:
    """Forked tokens, a cut counted as `fork_tokens`, that the batch saves where the last tokens of these rows are
    steps. at: offsets of each row's checkpoints."""
    spared = 0
    for row in last:
        for sign, end in ((1, lengths[row]), (-1, lengths[row] - 1)):
            offsets = sorted(offset for offset in at[row] if offset < end)
            cuts = choose_cuts(offsets, most, fork_tokens)
            spared += sign * (forked_tokens(offsets, cuts) + fork_tokens * len(cuts))
    return spared
