"""A layer's prefill on random inputs, through SGLang's own functions: what `form.py` holds our kernel against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from marconi_kernels.plan import CheckpointPlan

from .form import ENDS, LENGTHS
from .in_kernel import DeltaStages, InKernel, KernelPlan, Trial, save_lightning


class Streams:
    """Random inputs of a few sequences: the same tokens, however many of them are taken."""

    def __init__(
        self, pool: torch.Tensor, shapes: Mapping[str, Sequence[int]], dtype: torch.dtype, seed: int = 0
    ) -> None:
        """pool: a layer's, for its shape, dtype and device; shapes: of one token's inputs, by name"""
        generator = torch.Generator().manual_seed(seed)
        self._like, self._generator = pool, generator
        self._drawn = {
            name: [
                torch.randn(length, *shape, generator=generator).to(dtype).to(pool.device)
                for length in LENGTHS
            ]
            for name, shape in shapes.items()
        }

    def first(self, lengths: Sequence[int]) -> dict[str, torch.Tensor]:
        """So many tokens of each sequence, one sequence after another."""
        return {
            name: torch.cat([x[:length] for x, length in zip(streams, lengths, strict=False)])
            for name, streams in self._drawn.items()
        }

    def pool(self) -> torch.Tensor:
        """Slots for the sequences, then for what is saved."""
        slots = len(LENGTHS) + sum(map(len, ENDS))
        drawn = torch.randn(slots, *self._like.shape[1:], generator=self._generator)
        return drawn.to(self._like.dtype).to(self._like.device)

    @staticmethod
    def plan(rows: CheckpointPlan | None, lengths: Sequence[int], pool: torch.Tensor) -> KernelPlan:
        """Each sequence in the slot of its number."""
        starts = [sum(lengths[:seq]) for seq in range(len(lengths) + 1)]
        return KernelPlan.of(
            CheckpointPlan.from_lists([], [], [], device=pool.device) if rows is None else rows,
            torch.tensor(starts, dtype=torch.int32, device=pool.device),
            torch.arange(len(lengths), dtype=torch.int32, device=pool.device),
            torch.ones(len(lengths), dtype=torch.bool, device=pool.device),
            num_tokens=starts[-1],
            num_slots=len(pool),
        )


def delta_trial(
    stages: DeltaStages,
    pool: torch.Tensor,
    key_heads: int,
    dtype: torch.dtype,
    *,
    per_key: bool,
    pipeline: Callable[..., torch.Tensor],
) -> Trial:
    """pool: a layer's [slots, H, V, K]; dtype: of the activations; pipeline: the engine's chunked prefill, which
    returns its outputs"""
    heads, value_dim, key_dim = pool.shape[1:]
    keys, decays = (key_heads, key_dim), (heads, key_dim) if per_key else (heads,)
    shapes = {"q": keys, "k": keys, "v": (heads, value_dim), "g": decays, "beta": (heads,)}
    streams = Streams(pool, shapes, dtype)

    def prefill(pool: torch.Tensor, lengths: Sequence[int], into: CheckpointPlan | None) -> torch.Tensor:
        drawn = {name: x.unsqueeze(0) for name, x in streams.first(lengths).items()}
        drawn["g"] = torch.nn.functional.logsigmoid(drawn["g"].float() + 4)
        drawn["beta"] = drawn["beta"].float().sigmoid()
        plan = streams.plan(into, lengths, pool)

        def call() -> torch.Tensor:
            return pipeline(
                **drawn,
                initial_state=pool,
                initial_state_indices=plan.running,
                use_qk_l2norm_in_kernel=True,
                cu_seqlens=plan.starts,
            )

        if into is None:
            return call()
        outputs, saved = stages.run_stages(plan, pool, call)
        if not saved:
            raise RuntimeError("the pipeline didn't pass the stage")
        result: torch.Tensor = outputs
        return result

    return Trial(streams.pool(), prefill)


def lightning_trial(pool: torch.Tensor, slopes: torch.Tensor, dtype: torch.dtype) -> Trial:
    """pool: a layer's [slots, H, K, V]; slopes: fp32, H elements; dtype: of the activations"""
    from sglang.kernels.ops.attention.linear.seg_la import SegLaMeta, seg_la_fwd

    streams = Streams(pool, {name: pool.shape[1:3] for name in "qkv"}, dtype)

    def prefill(pool: torch.Tensor, lengths: Sequence[int], into: CheckpointPlan | None) -> torch.Tensor:
        drawn = streams.first(lengths)
        plan = streams.plan(into, lengths, pool)
        if into is not None:
            save_lightning(plan, drawn["k"], drawn["v"], slopes.reshape(-1), pool)
        meta = SegLaMeta(
            batch_size=len(lengths),
            q_offsets=plan.starts,
            s_offsets=plan.running,
            q_lengths=plan.starts.diff(),
            s_scales=plan.warm,
            max_q_length=None,
            mask=None,
        )
        out: torch.Tensor = seg_la_fwd(**drawn, s=pool, decay_scales=slopes, meta=meta)
        return out

    return Trial(streams.pool(), prefill)


# ---- one a family: (how it saves, backend, layer, the layer's tensors by name) ----


def gdn_trial(stages: InKernel, backend: Any, layer: Any, arguments: dict[str, Any]) -> Trial:
    """Gated DeltaNet's, on SGLang's chunked prefill as it stands now: the CPU platform binds its own."""
    from sglang.kernels.ops.attention.fla.chunk import chunk_gated_delta_rule

    def pipeline(**given: Any) -> torch.Tensor:
        out: torch.Tensor = chunk_gated_delta_rule(**given)[0]
        return out

    return _of_layer(stages, backend, layer, arguments, pipeline, per_key=False)


def kda_trial(stages: InKernel, backend: Any, layer: Any, arguments: dict[str, Any]) -> Trial:
    """Kimi Delta Attention's."""
    from sglang.kernels.ops.attention.fla.kda import chunk_kda

    return _of_layer(stages, backend, layer, arguments, chunk_kda, per_key=True)


def seg_la_trial(_beside: InKernel, backend: Any, layer: Any, arguments: dict[str, Any]) -> Trial:
    """Lightning attention's."""
    pool = backend.req_to_token_pool.mamba2_layer_cache(layer.layer_id).temporal
    return lightning_trial(pool, backend.tp_slope[layer.layer_id], arguments["k"].dtype)


def _of_layer(
    stages: InKernel,
    backend: Any,
    layer: Any,
    arguments: dict[str, Any],
    pipeline: Callable[..., torch.Tensor],
    *,
    per_key: bool,
) -> Trial:
    assert isinstance(stages, DeltaStages)
    pool = backend.req_to_token_pool.mamba2_layer_cache(layer.layer_id).temporal
    dtype = arguments["mixed_qkv"].dtype
    return delta_trial(stages, pool, layer.num_k_heads, dtype, per_key=per_key, pipeline=pipeline)
