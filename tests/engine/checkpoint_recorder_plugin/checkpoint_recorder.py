"""An SGLang plugin for tests: writes down what goes into each checkpointing scan and what it left in the pool."""

import itertools
import os
from pathlib import Path

_numbers = itertools.count()


def register() -> None:
    import torch

    import sglang_hooks.recurrence.mamba2 as forward
    from marconi_kernels.dispatch import runs_triton

    folder = Path(os.environ["CHECKPOINT_RECORDER_FOLDER"])
    scan, save_conv = forward.mamba_chunk_scan_combined, forward.save_conv_checkpoints

    def recording_scan(x, dt, A, B, C, **arguments):
        result = scan(x, dt, A, B, C, **arguments)
        plan, pool = arguments["checkpoint_plan"], arguments["checkpoint_pool"]
        record = {
            "kind": "ssm",
            "triton": runs_triton(x),
            "rows": plan.rows(),
            "saved": pool[plan.slot].clone(),
            "A": A.clone(),
        }
        for name, value in {"x": x, "dt": dt, "B": B}.items():
            record[name] = value[0].clone()
        for name in ("dt_bias", "cu_seqlens", "initial_states"):
            record[name] = None if arguments[name] is None else arguments[name].clone()
        torch.save(record, folder / f"{next(_numbers):04d}.pt")
        return result

    def recording_conv(x, cu_seqlens, plan, pool, *, has_initial_state, cache_indices):
        old = pool[cache_indices.long()].clone()
        save_conv(x, cu_seqlens, plan, pool, has_initial_state=has_initial_state, cache_indices=cache_indices)
        record = {
            "kind": "conv",
            "triton": runs_triton(x),
            "rows": plan.rows(),
            "saved": pool[plan.slot].clone(),
            "x": x.clone(),
            "cu_seqlens": cu_seqlens.clone(),
            "old": old,
            "has_initial_state": has_initial_state.clone(),
        }
        torch.save(record, folder / f"{next(_numbers):04d}.pt")

    forward.mamba_chunk_scan_combined = recording_scan
    forward.save_conv_checkpoints = recording_conv
