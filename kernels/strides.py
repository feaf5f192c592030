"""Strides as keyword arguments of a kernel launch."""

from __future__ import annotations

import torch


def named_strides(name: str, tensor: torch.Tensor | None, *axes: str) -> dict[str, int]:
    """`stride_<name>_<axis>` for each axis, in elements; zeros for a tensor that is not there."""
    strides = (0,) * len(axes) if tensor is None else tensor.stride()
    return {f"stride_{name}_{axis}": stride for axis, stride in zip(axes, strides, strict=True)}
