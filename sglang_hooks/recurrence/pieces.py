"""Exact states of any recurrence whose backend runs behind `HybridLinearAttnBackend.forward_extend`.

Where the family's own kernels can save the states inside an extend on their way, they do (`in_kernel.py`; `form.py`
decides). Everywhere else, and with any kernel:

The family's own kernels leave in the running slot the state after the tokens that they were given. So an extend is
run in pieces that end at the checkpoints, and the running slot is copied to the checkpoint's slot after each; or a
piece is run a second time, shorter, in the checkpoint's slot (a fork; see `piece_plan`). Whole slots are copied, so
layouts, dtypes and kernels don't matter, and a request that resumes there repeats what the first one computed. An
extend's last token alone is a decode step, where the family has one to take it.

A piece's metadata come from the family itself: its `init_forward_metadata` is called on a narrowed ForwardBatch, and
the attributes that it changed are kept and put back around the piece. Nothing is read from the device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..hooks import Hook
from .form import choose, kernel_wanted
from .forward import live_saver
from .in_kernel import InKernel, KernelPlan, kernel_plan
from .interface import ArmedCheckpoints, SaverContext, StateSaver
from .narrowing import index_tensor, metadata_for, narrow_batch, swap
from .piece_plan import STEP_TOKENS, Copy, PiecePlan, Round, plan_pieces

logger = logging.getLogger(__name__)

Step = Callable[[Any, dict[str, Any]], "dict[str, Any] | None"]
"""step(layer, arguments) - a prefill's arguments as the family's decode takes them, one token a sequence; None: this
layer's decode is no prefill of one token."""

_OUTPUT_BUFFER = "linear_attn_output"  # FlashInfer writes into it, and where pieces run the caller copies


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
    is_step: as a `Round`'s
    """

    batch: Any
    metadata: dict[str, Any]
    tokens: torch.Tensor
    kept: int
    before: Copies | None
    after: Copies | None
    is_step: bool

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


class PieceSaver(StateSaver):
    """In the kernel, or cuts and forks; every recurrent layer must pass `run_layer`."""

    _armed: ArmedCheckpoints | None
    _batch: Any
    _plan: PiecePlan | None

    def __init__(
        self, context: SaverContext, in_kernel: InKernel | None = None, step: Step | None = None
    ) -> None:
        """in_kernel: how the family's kernels save states, where they can and are wanted to
        step: how its decode takes an extend's last token; None: it doesn't
        Raises: ValueError where the environment's MARCONI_STATE_FORM says nothing."""
        self._num_layers = context.num_layers
        self._count = context.count
        self._building = False
        self._step = step
        self.in_kernel = in_kernel if kernel_wanted() else None
        self._form_chosen = False
        self._unfit = False  # a layer passed without its states; what it missed isn't published
        self.reset()

    def begin(self, armed: ArmedCheckpoints) -> None:
        self._armed = armed

    def metadata_made(self, forward_batch: Any) -> None:
        """The backend has planned this batch; what it plans for our pieces doesn't count."""
        if not self._building:
            self._batch = forward_batch

    def run_layer(
        self,
        forward: Callable[..., Any],
        hybrid: Any,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool,
        arguments: dict[str, Any],
    ) -> Any:
        """One linear layer's prefill. arguments: its tensors by name, and whatever else the model passes."""
        armed = self._armed
        if armed is None or not len(armed):
            return forward(hybrid, layer, forward_batch, save_kv_cache, **arguments)
        backend = hybrid.linear_attn_backend
        if self._plan is None:
            self._prepare(backend, forward_batch, layer, arguments)
        assert self._plan is not None
        saved = True
        if self._in_kernel_plan is not None and self.in_kernel is not None:
            result, saved = self.in_kernel.run(
                self._in_kernel_plan,
                backend,
                layer,
                arguments,
                lambda: forward(hybrid, layer, forward_batch, save_kv_cache, **arguments),
            )
        elif self._plan.plain:
            result = forward(hybrid, layer, forward_batch, save_kv_cache, **arguments)
        else:
            result = self._run_rounds(forward, hybrid, layer, save_kv_cache, arguments)
        self._layers += saved
        self._unfit |= not saved
        if self._layers == self._num_layers and self._at_end is not None:
            # All layers at once, with whatever else belongs to a slot.
            backend.req_to_token_pool.mamba_pool.copy_from(self._at_end.source, self._at_end.target)
        return result

    def missed(self) -> str | None:
        if self._layers == self._num_layers:
            return None
        return f"{self._layers} prefills of {self._num_layers} recurrent layers"

    def reset(self) -> None:
        self._armed = None
        self._batch = None
        self._plan = None
        self._rounds: list[Prepared] = []
        self._in_kernel_plan: KernelPlan | None = None
        self._at_end: Copies | None = None
        self._layers = 0

    def _prepare(self, backend: Any, forward_batch: Any, layer: Any, arguments: dict[str, Any]) -> None:
        """Plan the forward and put it on the device; once for all layers."""
        batch = forward_batch if self._batch is None else self._batch
        lengths = [int(n) for n in batch.extend_seq_lens_cpu]
        armed = self._armed
        assert armed is not None
        steps = self._step is not None and self._step(layer, arguments) is not None
        plan = plan_pieces(lengths, armed.row, armed.offset, step_tokens=STEP_TOKENS if steps else None)
        running = backend.forward_metadata.mamba_cache_indices.to(torch.int64)
        slots = armed.physical_slots(backend.req_to_token_pool)
        self._at_end = _copies(plan.at_end, running, slots)
        self._count("extend_forwards_with_checkpoints", 1)
        if not plan.plain and self._saves_in_kernel(backend, layer, arguments):
            self._in_kernel_plan = kernel_plan(armed, lengths, backend, layer, batch, running)
            self._count("states_saved_in_kernel", len(self._in_kernel_plan.rows))
            self._plan = plan
            return
        if not plan.plain:
            starts = [0]
            for length in lengths:
                starts.append(starts[-1] + length)
            self._building = True
            try:
                self._rounds = [
                    _prepare_round(backend, batch, round_, starts, running, slots) for round_ in plan.rounds
                ]
            finally:
                self._building = False
        self._plan = plan
        self._count("extend_cuts", plan.cuts)
        self._count("extend_steps", plan.steps)
        self._count("extend_forks", sum(len(r.spans) - r.pieces for r in plan.rounds))
        self._count("forked_tokens", plan.forked_tokens)

    def _saves_in_kernel(self, backend: Any, layer: Any, arguments: dict[str, Any]) -> bool:
        """Decided once, at the first forward that has a state inside an extend; given up where a layer is missed."""
        if self._unfit and self.in_kernel is not None:
            logger.error(
                "marconi-ext: a prefill passed our kernel by: states are saved in pieces and forks from now on"
            )
            self.in_kernel = None
        if self.in_kernel is not None and not self._form_chosen:
            if not choose(self.in_kernel, backend, layer, arguments):
                self.in_kernel = None
            self._form_chosen = True
        return self.in_kernel is not None

    def _run_rounds(
        self,
        forward: Callable[..., Any],
        hybrid: Any,
        layer: Any,
        save_kv_cache: bool,
        arguments: dict[str, Any],
    ) -> Any:
        backend = hybrid.linear_attn_backend
        cache = backend.req_to_token_pool.mamba2_layer_cache(layer.layer_id)
        states = [*cache.conv, cache.temporal]
        arguments = {name: value for name, value in arguments.items() if name != _OUTPUT_BUFFER}
        out = None
        for prepared in self._rounds:

            def call(prepared: Prepared = prepared) -> Any:
                narrowed = {name: _take(value, prepared.tokens) for name, value in arguments.items()}
                if prepared.is_step and self._step is not None:
                    taken = self._step(layer, narrowed)
                    if taken is not None:
                        return hybrid.forward_decode(layer, prepared.batch, save_kv_cache, **taken)
                return forward(hybrid, layer, prepared.batch, save_kv_cache, **narrowed)

            part = prepared.run(backend, states, call)
            dim = 1 if part.dim() == 4 else 0
            if out is None:
                shape = list(part.shape)
                shape[dim] = _tokens_of(arguments)
                out = part.new_zeros(shape)
            out.index_copy_(dim, prepared.tokens[: prepared.kept], part.narrow(dim, 0, prepared.kept))
        return out


def _prepare_round(
    backend: Any,
    batch: Any,
    round_: Round,
    starts: Sequence[int],
    running: torch.Tensor,
    slots: torch.Tensor,
) -> Prepared:
    spans = round_.spans
    device = running.device
    flat = [range(starts[s.row] + s.start, starts[s.row] + s.stop) for s in spans]
    tokens = torch.tensor([t for span in flat for t in span], dtype=torch.int64).to(device, non_blocking=True)
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
        before=_copies(round_.before, running, slots),
        after=_copies(round_.after, running, slots),
        is_step=round_.is_step,
    )


def _copies(copies: Sequence[Copy], running: torch.Tensor, slots: torch.Tensor) -> Copies | None:
    """Rows of the pool for the copies. A copy from another checkpoint reads that one's slot."""
    if not copies:
        return None
    device = running.device
    both = torch.cat([running, slots])  # a row's running slot, then the checkpoints' slots
    source = [c.row if c.source_checkpoint is None else len(running) + c.source_checkpoint for c in copies]
    return Copies(
        both[index_tensor(source, device)], slots[index_tensor([c.checkpoint for c in copies], device)]
    )


def _token_dim(value: torch.Tensor) -> int:
    """KDA's gates are [1, T, …], everything else begins with the tokens."""
    return 1 if value.dim() > 2 and value.shape[0] == 1 else 0


def _take(value: Any, tokens: torch.Tensor) -> Any:
    return value.index_select(_token_dim(value), tokens) if isinstance(value, torch.Tensor) else value


def _tokens_of(arguments: dict[str, Any]) -> int:
    """Tokens of the layer's call, padding included."""
    value = next(value for value in arguments.values() if isinstance(value, torch.Tensor))
    return value.shape[_token_dim(value)]


# ---- hooks ----


def _metadata_made(_result: Any, backend: Any, forward_batch: Any) -> None:
    saver = live_saver(PieceSaver, backend)
    if saver is not None:
        saver.metadata_made(forward_batch)


def _forward_extend(
    original: Callable[..., Any],
    hybrid: Any,
    layer: Any,
    forward_batch: Any,
    save_kv_cache: bool = True,
    q: torch.Tensor | None = None,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    mixed_qkv: torch.Tensor | None = None,
    a: torch.Tensor | None = None,
    b: torch.Tensor | None = None,
    **more: Any,
) -> Any:
    arguments = {"q": q, "k": k, "v": v, "mixed_qkv": mixed_qkv, "a": a, "b": b, **more}
    saver = live_saver(PieceSaver, hybrid.linear_attn_backend)
    if saver is None or hybrid._is_full_attn(layer, more.get("layer_id")):
        return original(hybrid, layer, forward_batch, save_kv_cache, **arguments)
    return saver.run_layer(original, hybrid, layer, forward_batch, save_kv_cache, arguments)


_BACKENDS = "sglang.srt.layers.attention.hybrid_linear_attn_backend"

PIECE_HOOKS = (
    Hook(
        f"{_BACKENDS}.MambaAttnBackendBase._forward_metadata",
        "after",
        _metadata_made,
        why="the batch as the backend planned it: a graph's replay shows the layers another",
        parameters="self forward_batch",
    ),
    Hook(
        f"{_BACKENDS}.HybridLinearAttnBackend.forward_extend",
        "around",
        _forward_extend,
        why="cut a recurrent layer's prefill where states are saved",
        parameters="self layer forward_batch save_kv_cache q k v mixed_qkv a b kwargs",
    ),
)
