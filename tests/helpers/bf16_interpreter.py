"""Make Triton 3.8.0's interpreter treat bfloat16 as the hardware does.

It keeps bf16 values as raw uint16 bits. Arithmetic and `tl.dot` take these integers, and a cast from fp32 truncates,
where the hardware rounds to nearest even. The shim converts operands to fp32 first (products of bf16 values are exact
in fp32, as in the tensor cores) and rounds results and casts. Remove when Triton itself does so.
"""

from __future__ import annotations

import numpy as np
import pytest
import triton.language as tl
from triton.runtime import interpreter


def _widen(data: np.ndarray) -> np.ndarray:
    return (data.astype(np.uint32) << 16).view(np.float32)


def _round(data: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(data).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(data), 0x7FC0, rounded).astype(np.uint16)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch the interpreter for the duration of a test."""
    builder = interpreter.InterpreterBuilder
    cast, dot, binary = builder.cast_impl, builder.create_dot, builder.binary_op

    def cast_impl(self, src, dst_type):
        source, target = src.dtype.scalar, dst_type.scalar
        if (source, target) == (tl.bfloat16, tl.float32):
            return interpreter.TensorHandle(_widen(src.data), target)
        if (source, target) == (tl.float32, tl.bfloat16):
            return interpreter.TensorHandle(_round(src.data), target)
        return cast(self, src, dst_type)

    def create_dot(self, a, b, d, *args):
        if a.dtype.scalar == tl.bfloat16:
            a = interpreter.TensorHandle(_widen(a.data), tl.float32)
            b = interpreter.TensorHandle(_widen(b.data), tl.float32)
        return dot(self, a, b, d, *args)

    def binary_op(self, lhs, rhs, op):
        if lhs.dtype.scalar != tl.bfloat16:
            return binary(self, lhs, rhs, op)
        result = op(_widen(lhs.data), _widen(rhs.data))
        return interpreter.TensorHandle(result if result.dtype == bool else _round(result), tl.bfloat16)

    def get_bf16(self, value):  # a constant, which it doesn't know at all
        return interpreter.TensorHandle(_round(np.array([value], dtype=np.float32)), tl.bfloat16)

    monkeypatch.setattr(builder, "get_bf16", get_bf16, raising=False)
    monkeypatch.setattr(builder, "cast_impl", cast_impl)
    monkeypatch.setattr(builder, "create_dot", create_dot)
    monkeypatch.setattr(builder, "binary_op", binary_op)


def round_dots_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a dot's products up in float64: a BLAS adds fp32 in an order that depends on the machine and on the tiles'
    shapes, where tests compare bits. Before `install`."""

    def create_dot(_builder, a, b, d, *_precision):
        product = np.matmul(a.data, b.data, dtype=np.float64).astype(d.data.dtype)
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
