"""A round of a prefill that is cut (`piece_plan`), on the device: its tokens, its metadata, and the states to copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .narrowing import index_tensor, metadata_for, narrow_batch, swap
from .piece_plan import Copy, Round


@dataclass(frozen=True)
class Copies:
    """States to copy, on the device. source, target: int64[n], rows of the pool's tensors."""

    source: torch.Tensor
    target: torch.Tensor

    def run(self, states: Sequence[torch.Tensor]) -> None:
        """states: a layer's tensors, slots first. Mutates the targets' rows."""
        for state in states:
            if state.numel():
                state[self.target] = state[self.source]


@dataclass
class Prepared:
    """One round, ready to run in every layer.

    batch: the narrowed ForwardBatch; metadata: the backend's attributes for it
    tokens: int64[t], the round's tokens in the batch; kept: how many of them belong to pieces
    leading: whether they are the batch's first t, and none a fork's; the layer's tensors then needn't be copied
    is_step: as a `Round`'s
    """

    batch: Any
    metadata: dict[str, Any]
    tokens: torch.Tensor
    kept: int
    leading: bool
    before: Copies | None
    after: Copies | None
    is_step: bool

    def take(self, value: Any) -> Any:
        """The round's part of one of the layer's arguments. A view only from the first token on: kernels want the
        alignment that the whole tensor has."""
        if not isinstance(value, torch.Tensor):
            return value
        dim = token_dim(value)
        if self.leading:
            return value.narrow(dim, 0, len(self.tokens))
        return value.index_select(dim, self.tokens)

    def put(self, part: torch.Tensor, out: torch.Tensor) -> None:
        """part: what the layer made of this round; out: of all tokens. Mutates out."""
        dim = output_dim(part)
        if self.leading:
            out.narrow(dim, 0, self.kept).copy_(part)
        else:
            out.index_copy_(dim, self.tokens[: self.kept], part.narrow(dim, 0, self.kept))

    def run(self, backend: Any, layer_states: Sequence[torch.Tensor], call: Callable[[], Any]) -> Any:
        """Call the layer with the backend set to this round; copy the states around it."""
        if self.before is not None:
            self.before.run(layer_states)
        saved = swap(backend, self.metadata)
        try:
            result = call()
        finally:
            swap(backend, saved)
        if self.after is not None:
            self.after.run(layer_states)
        return result


def prepare_round(
    backend: Any,
    batch: Any,
    round_: Round,
    starts: Sequence[int],
    running: torch.Tensor,
    slots: torch.Tensor,
) -> Prepared:
    spans = round_.spans
    device = running.device
    bounds = [(starts[s.row] + s.start, starts[s.row] + s.stop) for s in spans]
    tokens = index_tensor([t for bound in bounds for t in range(*bound)], device)
    narrowed = narrow_batch(batch, [(s.row, s.start, s.stop) for s in spans], tokens)
    metadata = metadata_for(backend, narrowed)
    forks = [s.checkpoint for s in spans if s.checkpoint is not None]
    if forks:
        indices = metadata["forward_metadata"].mamba_cache_indices
        indices[round_.pieces :] = slots[index_tensor(forks, device)].to(indices.dtype)
    return Prepared(
        batch=narrowed,
        metadata=metadata,
        tokens=tokens,
        kept=sum(s.stop - s.start for s in spans if s.checkpoint is None),
        leading=not forks and [begin for begin, _ in bounds] == [0, *(end for _, end in bounds[:-1])],
        before=copies_of(round_.before, running, slots),
        after=copies_of(round_.after, running, slots),
        is_step=round_.is_step,
    )


def copies_of(copies: Sequence[Copy], running: torch.Tensor, slots: torch.Tensor) -> Copies | None:
    """Rows of the pool for the copies. A copy from another checkpoint reads that one's slot."""
    if not copies:
        return None
    device = running.device
    both = torch.cat([running, slots])  # a row's running slot, then the checkpoints' slots
    source = [c.row if c.source_checkpoint is None else len(running) + c.source_checkpoint for c in copies]
    return Copies(
        both[index_tensor(source, device)], slots[index_tensor([c.checkpoint for c in copies], device)]
    )


def token_dim(value: torch.Tensor) -> int:
    """KDA's gates are [1, T, …], everything else begins with the tokens."""
    return 1 if value.dim() > 2 and value.shape[0] == 1 else 0


def output_dim(part: torch.Tensor) -> int:
    """Some backends return [1, T, heads, width], some [T, width]."""
    return 1 if part.dim() == 4 else 0


def tokens_of(arguments: dict[str, Any]) -> int:
    """Tokens of the layer's call, padding included."""
    value = next(value for value in arguments.values() if isinstance(value, torch.Tensor))
    return value.shape[token_dim(value)]
