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
from collections.abc import Callable
from typing import Any

import torch

from ..hooks import Hook
from .form import choose, kernel_wanted
from .forward import live_saver
from .in_kernel import InKernel, KernelPlan, kernel_plan
from .interface import ArmedCheckpoints, SaverContext, StateSaver
from .piece_plan import STEP_TOKENS, PiecePlan, plan_pieces
from .rounds import Copies, Prepared, copies_of, output_dim, prepare_round, tokens_of

logger = logging.getLogger(__name__)

Step = Callable[[Any, dict[str, Any]], "dict[str, Any] | None"]
"""step(layer, arguments) - a prefill's arguments as the family's decode takes them, one token a sequence; None: this
layer's decode is no prefill of one token."""

_OUTPUT_BUFFER = "linear_attn_output"  # FlashInfer writes into it, and where pieces run the caller copies


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
        self._at_end = copies_of(plan.at_end, running, slots)
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
                    prepare_round(backend, batch, round_, starts, running, slots) for round_ in plan.rounds
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
                narrowed = {name: prepared.take(value) for name, value in arguments.items()}
                if prepared.is_step and self._step is not None:
                    taken = self._step(layer, narrowed)
                    if taken is not None:
                        return hybrid.forward_decode(layer, prepared.batch, save_kv_cache, **taken)
                return forward(hybrid, layer, prepared.batch, save_kv_cache, **narrowed)

            part = prepared.run(backend, states, call)
            if out is None:
                shape = list(part.shape)
                shape[output_dim(part)] = tokens_of(arguments)
                out = part.new_zeros(shape)
            prepared.put(part, out)
        return out


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
