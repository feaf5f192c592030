"""Print, as JSON, the float instructions in the PTX of our SSM kernel and of SGLang's varlen kernel, same tile.

Run by test_same_arithmetic.py in a child process, since nothing compiles where Triton's interpreter is on.
"""

import contextlib
import json
import re
from collections import Counter
from types import SimpleNamespace

import torch
import triton
from sglang.kernels.ops.mamba.triton_ops import ssd_chunk_state

from marconi_ext.profiles.shapes import NEMOTRON_H_8B as SHAPE
from marconi_kernels.mamba2 import ssm_checkpoint
from marconi_kernels.plan import CheckpointPlan
from marconi_kernels.report.aot import TARGETS, recorded_launch, specialise
from marconi_kernels.report.kernel_report import meta, run_ssm

COUNTED = re.compile(r"\b(fma\.rn\.f32|add\.f32|(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)[\w.:]*)")
CU_SEQLENS = meta(5, dtype=torch.int32)


def ours():
    kernel = ssm_checkpoint._ssm_checkpoint_kernel
    plan = CheckpointPlan.from_lists([0], [0], [-1], device="meta", pad_to=8)
    with recorded_launch(ssm_checkpoint, "_ssm_checkpoint_kernel") as arguments:
        run_ssm(SHAPE, CU_SEQLENS, plan)
    return kernel, arguments


def engines():
    kernel, arguments = ssd_chunk_state._chunk_state_varlen_kernel.fn, {}

    class Recorder:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: arguments.update(
                zip(kernel.arg_names, args, strict=False), **kwargs
            )

    ssd_chunk_state._chunk_state_varlen_kernel = Recorder()
    torch.get_device_module = lambda device: SimpleNamespace(device=lambda index: contextlib.nullcontext())
    state = (SHAPE.nheads, SHAPE.headdim, SHAPE.dstate)
    steps = meta(SHAPE.nheads, 64, 128, dtype=torch.float32)
    ssd_chunk_state.chunk_state_varlen(
        meta(8192, SHAPE.ngroups, SHAPE.dstate),
        meta(8192, SHAPE.nheads, SHAPE.headdim),
        steps,
        steps,
        CU_SEQLENS,
        meta(64, *state, dtype=torch.float32),
        initial_states=meta(4, *state, dtype=torch.float32),
    )
    tile = {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 64, "num_warps": 4, "num_stages": 2}
    return kernel, arguments | tile


def main():
    result = {}
    for name, (kernel, arguments) in {"ours": ours(), "engine": engines()}.items():
        source, options = specialise(kernel, arguments)
        for target in ("sm_80", "sm_90", "sm_100"):
            ptx = triton.compile(source, target=TARGETS[target], options=options).asm["ptx"]
            result.setdefault(target, {})[name] = Counter(COUNTED.findall(ptx))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
