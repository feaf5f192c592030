"""Data-parallel attention: replicas that gather their tokens for the layers in between.

Target: `_is_cpu` of `model_executor.forward_batch_info`, `layers.dp_attention.memcpy_func`, the fill value of padded
rows of torch-native attention, and two collectives of `distributed.parallel_state`.
Why: token counts go through pinned memory, rows are copied by a Triton kernel, the backend names no fill value, and the
collectives are registered for accelerators alone.
How: SGLang's own ways for its CPU engine, and 1, which its other backends name.
Remove when: SGLang asks the platform and not for its CPU engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def apply() -> None:
    """Set them; idempotent."""
    from sglang.srt.distributed import parallel_state
    from sglang.srt.layers import dp_attention
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
    from sglang.srt.model_executor import forward_batch_info

    forward_batch_info._is_cpu = True
    dp_attention.memcpy_func = dp_attention.memcpy_cpu
    TorchNativeAttnBackend.get_cpu_graph_seq_len_fill_value = _one
    TorchNativeAttnBackend.get_cuda_graph_seq_len_fill_value = _one
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        setattr(parallel_state, f"reg_{name}", _collective(parallel_state._groups, f"_{name}"))


def _one(_backend: Any) -> int:
    return 1


def _collective(groups: dict[str, Any], method: str) -> Callable[..., None]:
    """What the registered operator does, called at once."""

    def call(output: torch.Tensor, input: torch.Tensor, group_name: str) -> None:
        getattr(groups[group_name](), method)(output, input)

    return call
