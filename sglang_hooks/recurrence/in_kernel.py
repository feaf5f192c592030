"""States inside an extend, saved while the layer's own kernels run: no cut, no fork, and the outputs as they were.

Any number of states of a batch takes two launches a layer. The convolution's windows are copied out of its inputs
before it overwrites the running slot; the matrices come from `delta_state_pass`, straight into the pool. That stands
where SGLang's Triton pipelines of the delta rule walk through the states (`chunk_gated_delta_rule_fwd_h`):

- **in place** of that stage, if its bits were found equal on this device (`form.py`): one launch less;
- **beside** it else: the engine's stage runs as ever, and ours before it, from the same running slots.

KDA's pipeline hands the stage keys that are scaled already; ours takes them from the stage before. Lightning attention
has no stages: ours runs before its fused kernel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from marconi_kernels.delta_rule.ssm_checkpoint import first_chunks
from marconi_kernels.delta_rule.state_pass import FUSED_BLOCK_SIZE, delta_state_pass
from marconi_kernels.grouped_plan import GroupedPlan, group_by_sequence
from marconi_kernels.mamba2.conv_checkpoint import save_conv_checkpoints
from marconi_kernels.plan import CheckpointPlan

from .interface import ArmedCheckpoints


@dataclass(frozen=True)
class KernelPlan:
    """What one forward saves inside its extends, on the device, for all layers.

    rows, grouped: the states, as listed and by sequence; starts: int[S+1]; running: int[S], the requests' slots
    warm: bool[S], which requests begin with their slot's state; chunk_offsets: int[S]; num_tokens: of the batch
    """

    rows: CheckpointPlan
    grouped: GroupedPlan
    starts: torch.Tensor
    running: torch.Tensor
    warm: torch.Tensor
    chunk_offsets: torch.Tensor
    num_tokens: int

    @classmethod
    def of(
        cls,
        rows: CheckpointPlan,
        starts: torch.Tensor,
        running: torch.Tensor,
        warm: torch.Tensor,
        *,
        num_tokens: int,
        num_slots: int,
    ) -> KernelPlan:
        """num_tokens: of the batch, padding left out; num_slots: rows of the pool"""
        grouped = group_by_sequence(rows, starts, num_slots)
        return cls(rows, grouped, starts, running, warm, first_chunks(starts), num_tokens)

    @cached_property
    def place_in_block(self) -> torch.Tensor:
        """int[T]: each token's place in its block of lightning attention's kernel, from 1 to 32. Made once a forward;
        nothing waits for the device."""
        flat = torch.arange(self.num_tokens, dtype=self.starts.dtype, device=self.starts.device)
        start = self.starts[torch.searchsorted(self.starts, flat, right=True) - 1]
        return (flat - start) % FUSED_BLOCK_SIZE + 1


def kernel_plan(
    armed: ArmedCheckpoints,
    lengths: Sequence[int],
    backend: Any,
    layer: Any,
    batch: Any,
    running: torch.Tensor,
) -> KernelPlan:
    """The states inside the extends; those at their ends are copied."""
    inner = ArmedCheckpoints()
    for row, offset, flat_end, slot in zip(armed.row, armed.offset, armed.flat_end, armed.slot, strict=True):
        if offset < lengths[row]:
            inner.add(row, offset, flat_end, slot)
    pool = backend.req_to_token_pool
    return KernelPlan.of(
        inner.plan(pool),
        backend.forward_metadata.query_start_loc,
        running,
        batch.extend_prefix_lens > 0,
        num_tokens=sum(lengths),
        num_slots=len(pool.mamba2_layer_cache(layer.layer_id).temporal),
    )


@dataclass(frozen=True)
class Trial:
    """A family's prefill of one layer on random inputs.

    pool: [slots, …], the states that it begins with, one slot a sequence first
    prefill: prefill(pool, lengths, into) - the first tokens of each sequence; `into` saves states on the way.
        Mutates pool. Returns the outputs.
    """

    pool: torch.Tensor
    prefill: Callable[[torch.Tensor, Sequence[int], CheckpointPlan | None], torch.Tensor]


TrialMaker = Callable[["InKernel", Any, Any, dict[str, Any]], Trial]


class InKernel(ABC):
    """How one family's layers save states on their way. One forward, and in it one layer, runs at a time.

    has_stages: there is a stage of the engine's that ours may stand for; in_place: it does
    """

    has_stages = False

    def __init__(self, trial: TrialMaker | None = None) -> None:
        """trial: makes the family's prefill at a layer's shape, for `form.py`"""
        self.in_place = False
        self._trial = trial

    def trial(self, backend: Any, layer: Any, arguments: dict[str, Any]) -> Trial:
        """The family's prefill at this layer's shape. arguments: as of `run`"""
        if self._trial is None:
            raise NotImplementedError(f"{type(self).__name__} has no trial")
        return self._trial(self, backend, layer, arguments)

    @abstractmethod
    def why_not(self, backend: Any) -> str | None:
        """Why this backend's prefill has no place for it, or None."""

    @abstractmethod
    def run(
        self, plan: KernelPlan, backend: Any, layer: Any, arguments: dict[str, Any], call: Callable[[], Any]
    ) -> tuple[Any, bool]:
        """Run one layer. arguments: its tensors by name; call: the layer's own prefill.
        Returns: its result, and whether the states were saved. Mutates the plan's slots of the layer's pools."""


def runs_class(kernel: Any, module: str, name: str) -> bool:
    """By exact class, and not on AMD, whose KDA has a pipeline of its own."""
    return (type(kernel).__module__, type(kernel).__qualname__) == (
        module,
        name,
    ) and torch.version.hip is None


class DeltaStages(InKernel):
    """Gated DeltaNet and KDA on SGLang's Triton stages."""

    has_stages = True
    _waiting: KernelPlan | None
    _keys: torch.Tensor | None

    def __init__(
        self, kernel: tuple[str, str], *, window_first: bool, trial: TrialMaker | None = None
    ) -> None:
        """kernel: module and class of the prefill kernel; window_first: conv windows are [W, channels] (KDA)."""
        super().__init__(trial)
        self._kernel = kernel
        self._window_first = window_first
        self._waiting = self._keys = None

    def why_not(self, backend: Any) -> str | None:
        kernel = backend.kernel_dispatcher.extend_kernel
        return None if runs_class(kernel, *self._kernel) else f"{type(kernel).__name__} has no such stage"

    def run(
        self, plan: KernelPlan, backend: Any, layer: Any, arguments: dict[str, Any], call: Callable[[], Any]
    ) -> tuple[Any, bool]:
        cache = backend.req_to_token_pool.mamba2_layer_cache(layer.layer_id)
        windows = cache.conv[0].transpose(1, 2) if self._window_first else cache.conv[0]
        save_conv_checkpoints(
            arguments["mixed_qkv"].transpose(0, 1),
            plan.starts,
            plan.rows,
            windows,
            has_initial_state=plan.warm,
            cache_indices=plan.running,
        )
        return self.run_stages(plan, cache.temporal, call)

    def run_stages(self, plan: KernelPlan, pool: torch.Tensor, call: Callable[[], Any]) -> tuple[Any, bool]:
        """The matrices alone. pool: [slots, H, V, K]; call: runs the pipeline once, whose stages come by below."""
        self._waiting, self._pool = plan, pool
        try:
            result = call()
            return result, self._waiting is None
        finally:
            self._waiting = self._keys = None

    def solving(self, k: torch.Tensor) -> None:
        """KDA's stage before: its keys, [1, T, H, K], not scaled yet."""
        if self._waiting is not None:
            self._keys = k

    def state_stage(self, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """The engine's pass through the states, with its arguments by name."""
        plan = self._waiting
        known = arguments["cu_seqlens"] is not None and arguments["initial_state"] is not None
        per_key = arguments["gk"] is not None
        keys = self._keys if per_key else arguments["k"]
        if plan is None or not known or keys is None:
            return original(**arguments)
        self._waiting = None
        k, w, u = keys[0], arguments["w"][0], arguments["u"][0]
        decays = (arguments["gk"] if per_key else arguments["g"])[0]
        chunks, initial = arguments["chunk_indices"], arguments["initial_state"]
        engines_own = initial.data_ptr() == self._pool.data_ptr() and initial.stride() == self._pool.stride()
        wanted = arguments["inplace_update"] and arguments["save_new_value"]
        plain = arguments["track_state"] is None and chunks is not None
        outputs: dict[str, Any] = {}
        in_place = self.in_place and engines_own and wanted and plain
        if in_place:
            h = k.new_empty(1, len(chunks), u.shape[1], u.shape[2], k.shape[2])
            v_new = torch.empty_like(arguments["u"])
            outputs = {"h": h[0], "v_new": v_new[0], "update_initial": True}
        delta_state_pass(
            k,
            w,
            u,
            decays,
            plan.starts,
            plan.grouped,
            self._pool,
            initial_indices=plan.running,
            chunk_offsets=plan.chunk_offsets,
            **outputs,
        )
        return (h, v_new) if in_place else original(**arguments)


class BesideLightning(InKernel):
    """Lightning attention: its prefill is one fused kernel, so ours runs before it."""

    def why_not(self, backend: Any) -> str | None:
        return (
            None if backend.linear_backend == "seg_la" else f"{backend.linear_backend} keeps its states apart"
        )

    def run(
        self, plan: KernelPlan, backend: Any, layer: Any, arguments: dict[str, Any], call: Callable[[], Any]
    ) -> tuple[Any, bool]:
        pool = backend.req_to_token_pool.mamba2_layer_cache(layer.layer_id).temporal  # [slots, H, K, V]
        heads, key_dim, value_dim = pool.shape[1:]
        k = arguments["k"].view(-1, heads, key_dim)
        v = arguments["v"].view(-1, heads, value_dim)
        slopes = backend.tp_slope[layer.layer_id].reshape(-1)
        save_lightning(plan, k, v, slopes, pool)
        return call(), True


def save_lightning(
    plan: KernelPlan, k: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor, pool: torch.Tensor
) -> None:
    """k: [T, H, K]; v: [T, H, V]; slopes: fp32[H], above zero; pool: [slots, H, K, V]. Mutates the plan's slots."""
    k, v = k[: plan.num_tokens], v[: plan.num_tokens]
    delta_state_pass(
        k,
        None,
        v,
        -slopes * plan.place_in_block[:, None],
        plan.starts,
        plan.grouped,
        pool.transpose(2, 3),
        initial_indices=torch.where(plan.warm, plan.running, -1),
        chunk_offsets=plan.chunk_offsets,
    )
