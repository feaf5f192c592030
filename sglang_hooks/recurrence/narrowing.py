"""A batch that holds only some spans of an extend, and the backend's metadata for it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

MISSING = object()
NO_TRACKING = (
    "mamba_track_indices",
    "mamba_track_mask",
    "mamba_track_seqlens",
    "mamba_track_seqlens_cpu",
    "mamba_prefill_track_mask_cpu",
)


def narrow_batch(batch: Any, spans: Sequence[tuple[int, int, int]], tokens: torch.Tensor) -> Any:
    """A copy of an extend's ForwardBatch that holds only these spans, each as a sequence of its own.

    spans: (row, start, stop), in tokens of the row's extend; tokens: int64[t], the same as indices into the batch
    """
    narrowed = copy.copy(batch)
    device = batch.seq_lens.device
    rows = [row for row, _, _ in spans]
    lengths = [stop - start for _, start, stop in spans]
    prefixes = [int(batch.extend_prefix_lens_cpu[row]) + start for row, start, _ in spans]
    totals = [prefix + length for prefix, length in zip(prefixes, lengths, strict=True)]
    begins = [sum(lengths[:i]) for i in range(len(lengths))]

    def like(original: torch.Tensor, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=original.dtype).to(original.device, non_blocking=True)

    narrowed.batch_size = len(spans)
    narrowed.req_pool_indices = batch.req_pool_indices[index_tensor(rows, device)]
    narrowed.seq_lens = like(batch.seq_lens, totals)
    narrowed.seq_lens_sum = sum(totals)
    if batch.seq_lens_cpu is not None:
        narrowed.seq_lens_cpu = torch.tensor(totals, dtype=batch.seq_lens_cpu.dtype)
    narrowed.extend_num_tokens = sum(lengths)
    narrowed.extend_seq_lens = like(batch.extend_seq_lens, lengths)
    narrowed.extend_seq_lens_cpu = lengths
    narrowed.extend_prefix_lens = like(batch.extend_prefix_lens, prefixes)
    narrowed.extend_prefix_lens_cpu = prefixes
    narrowed.extend_start_loc = like(batch.extend_start_loc, begins)
    if batch.input_ids is not None:
        narrowed.input_ids = batch.input_ids[tokens]
    if batch.out_cache_loc is not None:
        narrowed.out_cache_loc = batch.out_cache_loc[tokens]
    if batch.global_num_token_non_padded_cpu is not None:
        narrowed.global_num_token_non_padded_cpu = sum(lengths)
    for name in NO_TRACKING:  # ours is the only tracking, and their slots are translated in place
        setattr(narrowed, name, None)
    return narrowed


def metadata_for(backend: Any, batch: Any) -> dict[str, Any]:
    """What the backend's own planning sets for `batch`; the backend itself is left as it was."""
    before = dict(vars(backend))
    backend.init_forward_metadata(batch)
    changed = {name: value for name, value in vars(backend).items() if before.get(name, MISSING) is not value}
    swap(backend, {name: before.get(name, MISSING) for name in changed})
    return changed


def swap(target: Any, attributes: dict[str, Any]) -> dict[str, Any]:
    """Set the attributes (or take them away), and return what stood there."""
    old = {name: vars(target).get(name, MISSING) for name in attributes}
    for name, value in attributes.items():
        if value is MISSING:
            vars(target).pop(name, None)
        else:
            setattr(target, name, value)
    return old


def index_tensor(values: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)
