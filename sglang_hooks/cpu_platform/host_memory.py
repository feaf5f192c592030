"""Torch's device interface where "device" memory is host memory already."""

import contextlib

import torch


def apply() -> None:
    """Apply both patches; idempotent."""
    null_device_context()
    pageable_pin_memory()


def null_device_context() -> None:
    """Give `torch.cpu` the context manager that every accelerator's module has.

    Target: `torch.cpu.device`. Why: kernel launchers enter `torch.get_device_module(d).device(index)`.
    How: a null context. Remove when: torch.cpu has one.
    """
    if not hasattr(torch.cpu, "device"):
        torch.cpu.device = lambda index=None: contextlib.nullcontext()


def pageable_pin_memory() -> None:
    """Let host tensors stay pageable.

    Target: `torch.Tensor.pin_memory`. Why: the decode path pins unconditionally, which raises without an
    accelerator. How: return the tensor. Remove when: SGLang asks `is_pin_memory_available` everywhere.
    """
    if not torch.cuda.is_available():
        torch.Tensor.pin_memory = lambda self, device=None: self
