"""States inside answers: where they lie is told in `marconi_ext/policies/answer_grid.py`.

SGLang's own kernels copy them, in the forward pass that decodes the token: each batch that it decodes says for which of
its requests the state after the pass goes to a further slot. At page size 1 this extension leaves that tracking unused
otherwise, and such a state has a slot of its own, which is published like one that a prefill has filled, once its pass
was launched. At larger pages SGLang tracks all multiples of a page and keeps the last one: there it is told to leave
out those that aren't on the grid.
Source: SGLang 0.5.23, `ScheduleBatch.prepare_for_decode`, `_track_mamba_state_decode`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from sglang.srt.utils.common import async_h2d

from marconi_ext.policies.request_plan import Plan
from marconi_ext.policies.table.checkpoints import Kind

from ..ledger import PendingCheckpoint

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch


@dataclass(eq=False)
class _Inside:
    """grid: tokens; state: the last one of the answer, from the first multiple on"""

    grid: int
    state: PendingCheckpoint


class AnswerStates:
    """Of the requests whose answer leaves a state on the way, what they have of it. One per cache.

    save: takes a slot for such a state, or keeps the one that it has, and returns whether there is one
    """

    def __init__(self, save: Callable[[Req, PendingCheckpoint], bool], page_tokens: int) -> None:
        self._save, self._page_tokens = save, page_tokens
        self._open: dict[Req, _Inside] = {}

    def planned(self, req: Req, plan: Plan) -> None:
        """A request was planned."""
        if plan.answer_grid:
            self._open[req] = _Inside(plan.answer_grid, PendingCheckpoint(Kind.IN_ANSWER, 0, None, plan=plan))

    def grid(self, req: Req) -> int:
        """Tokens, at a multiple of which the request's answer leaves a state; 0: it leaves none."""
        inside = self._open.get(req)
        return 0 if inside is None else inside.grid

    def ended(self, req: Req) -> None:
        """Its slot is in the tree, or the ledger's to give back."""
        self._open.pop(req, None)

    def clear(self) -> None:
        """The pools were cleared."""
        self._open.clear()

    def track(self, batch: ScheduleBatch) -> None:
        """The batch is about to be launched: have its pass save the states that are due."""
        mask, slots = batch.mamba_track_mask, batch.mamba_track_indices
        if not self._open or mask is None or not batch.forward_mode.is_decode():
            return
        if self._page_tokens > 1:
            self._leave_out(batch)
            return
        rows, taken = [], []
        for row, req, inside, tokens in self._rows(batch):
            if tokens % inside.grid == 0 and self._has_slot(req, inside.state, tokens):
                rows.append(row)
                taken.append(inside.state.slot)
        if rows:
            at = async_h2d(rows, dtype=torch.int64, device=mask.device)
            mask[at] = True
            slots[at] = torch.cat(taken).to(slots.dtype)

    def _rows(self, batch: ScheduleBatch) -> Iterator[tuple[int, Req, _Inside, int]]:
        """Of these requests: its row, itself, what it has, and the tokens that its state stands for after the pass."""
        for row, (req, tokens) in enumerate(zip(batch.reqs, batch.seq_lens_cpu.tolist(), strict=False)):
            if (inside := self._open.get(req)) is not None:
                yield row, req, inside, tokens

    def _leave_out(self, batch: ScheduleBatch) -> None:
        """SGLang's tracking of pages: of these requests only what is on the grid."""
        rows = []
        for row, _, inside, tokens in self._rows(batch):
            if batch.mamba_track_mask_cpu[row] and tokens % inside.grid:
                batch.mamba_track_mask_cpu[row] = False
                rows.append(row)
            if batch.mamba_track_mask_next_cpu is not None and (tokens + 1) % inside.grid:
                batch.mamba_track_mask_next_cpu[row] = False
        if rows:
            at = async_h2d(rows, dtype=torch.int64, device=batch.mamba_track_mask.device)
            batch.mamba_track_mask[at] = False

    def _has_slot(self, req: Req, state: PendingCheckpoint, tokens: int) -> bool:
        state.position_tokens = tokens
        state.written = self._save(req, state)  # by the pass that is about to be launched
        return state.written
