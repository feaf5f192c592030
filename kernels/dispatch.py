"""Choose between a Triton kernel and its torch twin by where the tensors live."""

from __future__ import annotations

import os

import torch


def runs_triton(tensor: torch.Tensor) -> bool:
    """True on a GPU, and on the CPU where the process runs Triton's interpreter (TRITON_INTERPRET=1)."""
    return tensor.device.type != "cpu" or os.environ.get("TRITON_INTERPRET") == "1"
