"""Compile kernels ahead of time, without a GPU, exactly as their launchers would launch them.

A launcher runs on meta tensors while its kernel is replaced by a recorder; the recorded arguments are
specialised as Triton's JIT does (ones become constants, multiples of 16 are marked) and compiled for a target.
Not possible in a process that runs Triton's interpreter.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Opcodes of the matrix units in PTX and amdgcn.
MMA = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma|v_mfma_f32\w*)")
DTYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}
SHARED_PER_SM = {"sm_80": 164 << 10, "sm_90": 228 << 10, "sm_100": 228 << 10, "gfx942": 64 << 10}


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes. Registers: per thread (VGPRs on AMD); shared: bytes a program."""

    registers: int
    spill_bytes: int
    shared_bytes: int
    occupancy: float  # resident warps / the most an SM (a CU) holds
    mma_instructions: tuple[str, ...]


class _Recorder:
    def __init__(self) -> None:
        self.arguments: dict[str, Any] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda **arguments: self.arguments.update(arguments)


@contextmanager
def recorded_launch(module: ModuleType, kernel_name: str) -> Iterator[dict[str, Any]]:
    """Within the block, a launch of `module.kernel_name` only fills the dict it is given."""
    kernel = getattr(module, kernel_name)
    recorder = _Recorder()
    setattr(module, kernel_name, recorder)
    try:
        yield recorder.arguments
    finally:
        setattr(module, kernel_name, kernel)


def specialise(kernel: triton.JITFunction, arguments: dict[str, Any]) -> tuple[ASTSource, dict[str, Any]]:
    """The source for one launch's arguments, and what is left over: the compile options."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = f"*{DTYPES[value.dtype]}"
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        if isinstance(value, torch.Tensor) or value % 16 == 0:
            attributes[(index,)] = [["tt.divisibility", 16]]
    options = {name: value for name, value in arguments.items() if name not in kernel.arg_names}
    return ASTSource(kernel, signature, constants, attributes), options


def compile_resources(kernel: Any, arguments: dict[str, Any], target_name: str) -> Resources:
    """Compile for one of TARGETS and read the resources out of the binary.

    Raises: RuntimeError where Triton interprets kernels (TRITON_INTERPRET=1).
    """
    if not isinstance(kernel, triton.JITFunction):
        raise RuntimeError("kernels can't be compiled while TRITON_INTERPRET=1: unset it")
    source, options = specialise(kernel, arguments)
    target = TARGETS[target_name]
    compiled = triton.compile(source, target=target, options=options)
    if target.backend == "hip":
        text = compiled.asm["amdgcn"]
        registers = _field(text, r"\.vgpr_count:\s+(\d+)")
        spills = 4 * (
            _field(text, r"\.vgpr_spill_count:\s+(\d+)") + _field(text, r"\.sgpr_spill_count:\s+(\d+)")
        )
        occupancy = _occupancy_amd(registers, compiled.metadata.shared, options["num_warps"])
    else:
        text = compiled.asm["ptx"]
        registers, spills = _cubin_usage(compiled.asm["cubin"])
        occupancy = _occupancy_nvidia(registers, compiled.metadata.shared, options["num_warps"], target_name)
    return Resources(
        registers=registers,
        spill_bytes=spills,
        shared_bytes=compiled.metadata.shared,
        occupancy=occupancy,
        mma_instructions=tuple(sorted(set(MMA.findall(text)))),
    )


def _field(text: str, pattern: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, f"no {pattern} in the compiler's output"
    return int(found[1])


def _cubin_usage(cubin: bytes) -> tuple[int, int]:
    """Registers a thread, and bytes of stack and local memory: where ptxas puts what it spills."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return _field(text, r"REG:(\d+)"), _field(text, r"STACK:(\d+)") + _field(text, r"LOCAL:(\d+)")


def _occupancy_nvidia(registers: int, shared: int, warps: int, target: str) -> float:
    """64 warps and 65,536 registers an SM, given out in 256s a warp; 1 KiB of shared memory is the driver's."""
    registers_per_warp = -(-registers * 32 // 256) * 256
    programs = min(65_536 // (registers_per_warp * warps), SHARED_PER_SM[target] // (shared + 1024), 32)
    return min(programs * warps, 64) / 64


def _occupancy_amd(registers: int, shared: int, waves: int) -> float:
    """4 SIMDs a CU, at most 8 waves each; 512 VGPRs a lane, given out in 8s."""
    per_simd = min(8, 512 // (-(-registers // 8) * 8))
    programs = min(4 * per_simd // waves, SHARED_PER_SM["gfx942"] // max(shared, 1))
    return min(programs * waves, 32) / 32
