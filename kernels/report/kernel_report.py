"""What the kernels cost, without a GPU: resources from ahead-of-time compiles, bytes and FLOPs, estimates.

Everything named "estimate" comes from a roofline model and was not measured. `resource_budget.json` holds the
most registers and shared memory that each kernel may take on each target; spills may only be 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton

from marconi_kernels.delta_rule import ssm_checkpoint as gdn_checkpoint
from marconi_kernels.delta_rule import state_pass as delta_state_pass
from marconi_kernels.delta_rule.ssm_checkpoint import CHUNK_SIZE
from marconi_kernels.grouped_plan import GroupedPlan
from marconi_kernels.mamba2 import conv_checkpoint, ssm_checkpoint
from marconi_kernels.plan import CheckpointPlan
from marconi_kernels.report.aot import TARGETS, compile_resources, recorded_launch
from marconi_kernels.report.model_shapes import ModelShape
from marconi_kernels.report.roofline import (
    Hardware,
    conv_checkpoint_bytes,
    mean_live_tokens,
    overhead_table,
    ssm_checkpoint_bytes,
    ssm_checkpoint_flops,
)

BUDGET_FILE = Path(__file__).with_name("resource_budget.json")
PREFILL_TOKENS = tuple(1024 << i for i in range(8))  # 1k to 128k
CHECKPOINT_COUNTS = (1, 2, 4, 8)
KIMI_LINEAR = (32, 128)  # heads and key channels of moonshotai/Kimi-Linear-48B-A3B-Instruct, a decay for each
LIGHTNING_HEADS = 16  # of inclusionAI/Ring-mini-linear-2.0
TOKENS, SEQUENCES, ROWS, SLOTS = 8192, 4, 8, 512  # of the launches that are compiled: bounds, not tile sizes


@dataclass(frozen=True)
class Launch:
    """One kernel at one model's shape; `run` calls its launcher on meta tensors."""

    kernel: str
    model: str
    module: ModuleType
    function: str
    run: Callable[[], None]


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def launches(shapes: Iterable[ModelShape]) -> Iterator[Launch]:
    """Every kernel at every model's shape that uses it: bf16 activations, fp32 states and pool."""
    cu_seqlens = meta(SEQUENCES + 1, dtype=torch.int32)
    plan = CheckpointPlan.from_lists([0] * ROWS, [0] * ROWS, [-1] * ROWS, device="meta")
    indices = meta(SEQUENCES, dtype=torch.int32)
    rows = meta(ROWS, dtype=torch.int64)
    grouped = GroupedPlan(meta(SEQUENCES + 1, dtype=torch.int32), rows, rows)

    for shape in shapes:
        yield Launch(
            "conv_checkpoint",
            shape.name,
            conv_checkpoint,
            "_conv_checkpoint_kernel",
            partial(
                conv_checkpoint.save_conv_checkpoints_triton,
                meta(TOKENS, shape.conv_dim).t(),
                cu_seqlens,
                plan,
                meta(SLOTS, shape.conv_dim, shape.conv_window),
                has_initial_state=meta(SEQUENCES, dtype=torch.bool),
                cache_indices=indices,
            ),
        )
        is_gdn = shape.kind == "gdn"
        name, module, run = (
            ("gdn_checkpoint", gdn_checkpoint, run_gdn)
            if is_gdn
            else ("ssm_checkpoint", ssm_checkpoint, run_ssm)
        )
        yield Launch(name, shape.name, module, f"_{name}_kernel", partial(run, shape, cu_seqlens, plan))
        if is_gdn:
            yield state_pass(shape.name, shape.ngroups, (shape.nheads,), cu_seqlens, grouped)
    yield state_pass("Kimi-Linear-48B-A3B", KIMI_LINEAR[0], KIMI_LINEAR, cu_seqlens, grouped)
    yield state_pass(
        "Ring-mini-linear-2.0",
        LIGHTNING_HEADS,
        (LIGHTNING_HEADS,),
        cu_seqlens,
        grouped,
        delta_rule=False,
    )


def state_pass(
    model: str,
    key_heads: int,
    decays: tuple[int, ...],
    cu_seqlens: torch.Tensor,
    plan: GroupedPlan,
    *,
    delta_rule: bool = True,
) -> Launch:
    """The pass through the states, which all families but Mamba2 share."""
    run = partial(run_delta, key_heads, decays, cu_seqlens, plan, delta_rule=delta_rule)
    return Launch("delta_state_pass", model, delta_state_pass, "_delta_state_pass_kernel", run)


def run_gdn(shape: ModelShape, cu_seqlens: torch.Tensor, plan: CheckpointPlan) -> None:
    """Launch the kernel that saves states from the engine's chunk states, on meta tensors."""
    state = (shape.nheads, shape.headdim, shape.dstate)
    gdn_checkpoint.save_gdn_checkpoints_triton(
        meta(TOKENS, shape.ngroups, shape.dstate),
        meta(TOKENS, shape.nheads, shape.headdim),
        meta(TOKENS, shape.nheads, dtype=torch.float32),
        meta(TOKENS // shape.chunk_size, *state),
        cu_seqlens,
        plan,
        meta(SLOTS, *state, dtype=torch.float32),
    )


def run_delta(
    key_heads: int, decays: tuple[int, ...], cu_seqlens: torch.Tensor, plan: GroupedPlan, *, delta_rule: bool
) -> None:
    """Launch the state pass with heads of 128 × 128 on meta tensors; decays: (heads,), or (heads, key channels)."""
    heads, dim = decays[0], 128
    values = meta(TOKENS, heads, dim)
    delta_state_pass.delta_state_pass_triton(
        meta(TOKENS, key_heads, dim),
        meta(TOKENS, heads, dim) if delta_rule else None,
        values,
        meta(TOKENS, *decays, dtype=torch.float32),
        cu_seqlens,
        plan,
        meta(SLOTS, heads, dim, dim, dtype=torch.float32),
        initial_indices=meta(SEQUENCES, dtype=torch.int32),
        h=meta(TOKENS // CHUNK_SIZE, heads, dim, dim) if delta_rule else None,
        v_new=values if delta_rule else None,
        update_initial=True,
    )


def run_ssm(shape: ModelShape, cu_seqlens: torch.Tensor, plan: CheckpointPlan) -> None:
    """Launch the SSM kernel at a model's shape, on meta tensors."""
    nchunks = TOKENS // shape.chunk_size
    state = (shape.nheads, shape.headdim, shape.dstate)
    steps = meta(shape.nheads, nchunks, shape.chunk_size, dtype=torch.float32)
    ssm_checkpoint.save_ssm_checkpoints_triton(
        meta(TOKENS, shape.nheads, shape.headdim),
        meta(TOKENS, shape.ngroups, shape.dstate),
        steps,
        steps,
        meta(nchunks, *state, dtype=torch.float32),
        cu_seqlens,
        plan,
        meta(SLOTS, *state, dtype=torch.float32),
        initial_states=meta(SEQUENCES, *state, dtype=torch.float32),
    )


def resource_rows(
    shapes: Iterable[ModelShape],
    targets: tuple[str, ...] = tuple(TARGETS),
    *,
    on_done: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Compile everything; one row a kernel, model and target. `on_done` is called after each compile."""
    jobs = []
    for launch in launches(shapes):
        kernel = getattr(launch.module, launch.function)
        with recorded_launch(launch.module, launch.function) as arguments:
            launch.run()
        jobs += [(launch, kernel, arguments, target) for target in targets]

    def compile_one(job: tuple) -> dict[str, Any]:
        launch, kernel, arguments, target = job
        resources = asdict(compile_resources(kernel, arguments, target))
        on_done()
        return {"kernel": launch.kernel, "model": launch.model, "target": target, **resources}

    with ThreadPoolExecutor(2) as workers:
        return list(workers.map(compile_one, jobs))


def cost_rows(shapes: Iterable[ModelShape]) -> list[dict[str, Any]]:
    """Bytes and FLOPs for each checkpoint and layer, counted, at the mean offset in a chunk."""
    return [
        {
            "model": shape.name,
            "recurrent_layers": shape.recurrent_layers,
            "state_bytes_min": ssm_checkpoint_bytes(shape, 1),
            "state_bytes_mean": ssm_checkpoint_bytes(shape, mean_live_tokens(shape)),
            "state_bytes_max": ssm_checkpoint_bytes(shape, shape.chunk_size),
            "conv_bytes": conv_checkpoint_bytes(shape),
            "flops_mean": ssm_checkpoint_flops(shape, mean_live_tokens(shape)),
        }
        for shape in shapes
    ]


def estimate_rows(shapes: Collection[ModelShape], gpus: Iterable[Hardware]) -> list[dict[str, Any]]:
    return [
        row
        for hardware in gpus
        for shape in shapes
        for row in overhead_table(shape, hardware, PREFILL_TOKENS, CHECKPOINT_COUNTS)
    ]


def build_report(
    shapes: Collection[ModelShape], gpus: Iterable[Hardware], *, on_done: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """The whole report as plain data. Raises: RuntimeError where Triton's interpreter is on."""
    resources = resource_rows(shapes, on_done=on_done)
    return {
        "bench": "kernel_report",
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
        "resources": resources,
        "over_budget": over_budget(resources),
        "costs": cost_rows(shapes),
        "estimates": estimate_rows(shapes, gpus),
    }


def compile_count(shapes: Iterable[ModelShape]) -> int:
    return len(TARGETS) * sum(1 for _ in launches(shapes))


def over_budget(resources: list[dict[str, Any]]) -> list[str]:
    """One line for each spill, and for each kernel that takes more than `resource_budget.json` grants."""
    budget = json.loads(BUDGET_FILE.read_text())
    problems = []
    for row in resources:
        name = f"{row['kernel']} {row['model']} {row['target']}"
        granted = budget.get(name)
        if granted is None:
            problems.append(f"{name}: not in {BUDGET_FILE.name}")
            continue
        if row["spill_bytes"]:
            problems.append(f"{name}: spills {row['spill_bytes']} bytes")
        for key in ("registers", "shared_bytes"):
            if row[key] > granted[key]:
                problems.append(f"{name}: {key} {row[key]} over the budget of {granted[key]}")
        if granted["mma"] and not row["mma_instructions"]:
            problems.append(f"{name}: no matrix instructions")
    return problems


def budget_from(resources: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A budget that grants what was measured, registers rounded up to the next 8 (how they are given out), and 8 more:
    the compiler's answer differs by a few from one compile to the next."""
    return {
        f"{row['kernel']} {row['model']} {row['target']}": {
            "registers": min(255, -(-row["registers"] // 8) * 8 + 8),
            "shared_bytes": row["shared_bytes"],
            "mma": bool(row["mma_instructions"]),
        }
        for row in resources
    }
