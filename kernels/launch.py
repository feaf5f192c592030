"""What the launchers share: sizes and strides on the host, in few microseconds, since each layer pays for them."""

from __future__ import annotations

from functools import lru_cache

import torch


def ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)  # triton.cdiv works in kernels too, and takes 5 µs on the host


def next_power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()


@lru_cache
def _stride_names(name: str, axes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"stride_{name}_{axis}" for axis in axes)


def named_strides(name: str, tensor: torch.Tensor | None, *axes: str) -> dict[str, int]:
    """`stride_<name>_<axis>` for each axis, in elements; zeros for a tensor that is not there."""
    strides = (0,) * len(axes) if tensor is None else tensor.stride()
    return dict(zip(_stride_names(name, axes), strides, strict=True))
