"""LoRA adapters, with SGLang's `--lora-backend torch_native`.

Target: `torch` as `sglang.srt.lora.layers` and that backend see it. Why: they make small tensors in pinned memory,
which raises without an accelerator. How: plain memory. Remove when: SGLang asks `is_pin_memory_available` there, too.
"""

from __future__ import annotations

from typing import Any

import torch


class _Unpinned:
    """The module torch, but for the functions that are asked for pinned memory."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def tensor(*args: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return torch.tensor(*args, **options)

    @staticmethod
    def zeros(*args: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return torch.zeros(*args, **options)


def apply() -> None:
    """Set it; idempotent."""
    from sglang.srt.lora import layers
    from sglang.srt.lora.backend import torch_backend

    layers.torch = torch_backend.torch = _Unpinned()
