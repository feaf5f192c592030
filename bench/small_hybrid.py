"""A hybrid backend in plain torch with the shape of SGLang's: enough for `PieceSaver`, on the CPU, without an engine.

Its recurrences are the torch twins that the CPU platform serves with.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch

from marconi_kernels.torch_twins import conv, delta_rule, kda

WIDTH, HEADS, KEY, VALUE = 4, 2, 8, 8
CHANNELS = HEADS * (2 * KEY + VALUE)


class Pool:
    """State pools of all layers; slots are virtual = physical."""

    def __init__(self, layers: int, slots: int, dtype: torch.dtype = torch.float32) -> None:
        self.conv = torch.zeros(layers, slots, CHANNELS, WIDTH - 1)
        self.temporal = torch.zeros(layers, slots, HEADS, VALUE, KEY, dtype=dtype)
        self.mamba_pool = self

    def translate_mamba_indices(self, slots: torch.Tensor) -> torch.Tensor:
        return slots

    def mamba2_layer_cache(self, layer: int) -> SimpleNamespace:
        return SimpleNamespace(conv=[self.conv[layer]], temporal=self.temporal[layer])

    def copy_from(self, source: torch.Tensor, target: torch.Tensor) -> None:
        self.conv[:, target] = self.conv[:, source]
        self.temporal[:, target] = self.temporal[:, source]


class Backend:
    """The linear side. `per_key`: decay a key channel (KDA) instead of a head (GDN)."""

    def __init__(self, pool: Pool, running: torch.Tensor, per_key: bool) -> None:
        self.req_to_token_pool = pool
        self.running = running  # slot of each request
        self.per_key = per_key
        self.planned = 0
        self.saver = None
        self.stages = {}  # in place of the torch pipeline's own, by its arguments' names

    def init_forward_metadata(self, batch: SimpleNamespace) -> None:
        starts = torch.cat([batch.extend_start_loc, (batch.extend_start_loc + batch.extend_seq_lens)[-1:]])
        self.forward_metadata = SimpleNamespace(
            query_start_loc=starts, mamba_cache_indices=self.running[batch.req_pool_indices]
        )
        self.planned += 1
        if self.saver is not None:
            self.saver.metadata_made(batch)

    def forward_extend(
        self, layer: SimpleNamespace, batch: SimpleNamespace, mixed_qkv: torch.Tensor, a: torch.Tensor
    ) -> torch.Tensor:
        cache = self.req_to_token_pool.mamba2_layer_cache(layer.layer_id)
        meta = self.forward_metadata
        mixed = conv.causal_conv1d_fn(
            mixed_qkv.T,
            layer.weight,
            None,
            conv_states=cache.conv[0],
            has_initial_state=batch.extend_prefix_lens > 0,
            cache_indices=meta.mamba_cache_indices,
            query_start_loc=meta.query_start_loc,
            seq_lens_cpu=batch.extend_seq_lens_cpu,
        ).T
        q, k, v = delta_rule.split_qkv(mixed, cache.temporal)
        beta = mixed.new_full((1, len(mixed), HEADS), 0.6)
        shared = {
            "initial_state": cache.temporal,
            "initial_state_indices": meta.mamba_cache_indices,
            "use_qk_l2norm_in_kernel": True,
            "cu_seqlens": meta.query_start_loc,
        }
        q, k, v = (x.unsqueeze(0) for x in (q, k, v))
        if self.per_key:
            return kda.chunk_kda(q, k, v, a.unflatten(2, (HEADS, KEY)), beta, **shared, **self.stages)
        return delta_rule.chunk_gated_delta_rule(q, k, v, a.unsqueeze(0), beta, **shared, **self.stages)[0]

    def forward_decode(
        self, layer: SimpleNamespace, _batch: SimpleNamespace, mixed_qkv: torch.Tensor, a: torch.Tensor
    ) -> torch.Tensor:
        """One token a sequence."""
        cache = self.req_to_token_pool.mamba2_layer_cache(layer.layer_id)
        slots = self.forward_metadata.mamba_cache_indices
        mixed = conv.causal_conv1d_update(
            mixed_qkv, cache.conv[0], layer.weight, activation="silu", conv_state_indices=slots
        )
        q, k, v = delta_rule.split_qkv(mixed, cache.temporal)
        q, k = delta_rule.l2norm(q) * KEY**-0.5, delta_rule.l2norm(k)
        gates = a.unflatten(1, (HEADS, KEY)) if self.per_key else a
        beta = mixed.new_full((len(mixed), HEADS), 0.6)
        return delta_rule.delta_rule_step(q, k, v.float(), gates, beta, cache.temporal, slots).unsqueeze(0)


class Hybrid:
    """The wrapper that the hook sees."""

    def __init__(self, backend: Backend) -> None:
        self.linear_attn_backend = backend

    def forward_extend(
        self, layer: SimpleNamespace, batch: SimpleNamespace, _save: bool, **arguments: torch.Tensor
    ) -> torch.Tensor:
        return self.linear_attn_backend.forward_extend(layer, batch, arguments["mixed_qkv"], arguments["a"])

    def forward_decode(
        self, layer: SimpleNamespace, batch: SimpleNamespace, _save: bool, **arguments: torch.Tensor
    ) -> torch.Tensor:
        return self.linear_attn_backend.forward_decode(layer, batch, arguments["mixed_qkv"], arguments["a"])


def batch_of(prefixes: list[int], lengths: list[int]) -> SimpleNamespace:
    """A ForwardBatch with the fields that matter. Row i is request i."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    totals = [p + n for p, n in zip(prefixes, lengths, strict=True)]
    return SimpleNamespace(
        batch_size=len(lengths),
        req_pool_indices=torch.arange(len(lengths)),
        seq_lens=torch.tensor(totals),
        seq_lens_cpu=torch.tensor(totals),
        seq_lens_sum=sum(totals),
        extend_num_tokens=sum(lengths),
        extend_seq_lens=torch.tensor(lengths, dtype=torch.int32),
        extend_seq_lens_cpu=lengths,
        extend_prefix_lens=torch.tensor(prefixes, dtype=torch.int32),
        extend_prefix_lens_cpu=prefixes,
        extend_start_loc=torch.tensor(starts, dtype=torch.int32),
        input_ids=torch.arange(sum(lengths)),
        out_cache_loc=torch.arange(sum(lengths)),
        global_num_token_non_padded_cpu=None,
    )
