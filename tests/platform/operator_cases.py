"""Inputs for the operator tests, and the reference script that runs SGLang's Triton kernels on them.

As a script it writes the outputs of the kernels under Triton's interpreter to the file it is given. It runs in
a process of its own, because Triton decides at import whether its kernels are interpreted.
"""

import os
import sys

import torch

HEADS, HEAD_DIM, STATE = 4, 8, 16
BASE = {"lengths": [37], "warm": [False], "chunk": 16, "groups": 2, "decay": 1.0}
SCANS = {
    "one cold prompt": {},
    "one warm prompt": {"warm": [True]},
    "shorter than the convolution": {"lengths": [2], "warm": [True]},
    "ragged, all cold": {"lengths": [5, 16, 1, 40], "warm": [False] * 4},
    "ragged, some warm": {"lengths": [5, 16, 1, 40], "warm": [True, False, True, True]},
    "ends on chunk boundaries": {"lengths": [16, 32, 16], "warm": [True, True, True]},
    "many in one chunk": {"lengths": [3, 2, 4, 1, 3, 20], "warm": [True, True, False, True, True, False]},
    "one group": {"groups": 1, "warm": [True]},
    "a group for each head": {"groups": 4, "warm": [True]},
    "several row blocks a chunk": {"lengths": [200, 30], "warm": [True, True], "chunk": 128},
    "decays beyond fp32": {"lengths": [40, 24], "warm": [True, True], "decay": 400.0},
}


def scan_inputs(name: str) -> dict:
    """Arguments of the whole scan; tracked ends lie inside, at the start's next token and at the end."""
    case = BASE | SCANS[name]
    torch.manual_seed(sorted(SCANS).index(name))
    lengths, tokens, groups = case["lengths"], sum(case["lengths"]), case["groups"]
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    warm = torch.tensor(case["warm"])
    initial = torch.randn(len(lengths), HEADS, HEAD_DIM, STATE) * warm[:, None, None, None]
    tracked = [
        (i, int(cu_seqlens[i]) + n) for i, length in enumerate(lengths) for n in {1, length // 2, length} if n
    ]
    inputs = {
        "x": torch.randn(1, tokens, HEADS, HEAD_DIM),
        "dt": torch.randn(1, tokens, HEADS),
        "A": -case["decay"] * (torch.rand(HEADS) + 0.01),
        "B": torch.randn(1, tokens, groups, STATE),
        "C": torch.randn(1, tokens, groups, STATE),
        "chunk_size": case["chunk"],
        "D": torch.randn(HEADS),
        "dt_bias": torch.randn(HEADS) - 2,
        "initial_states": initial if bool(warm.any()) else None,
        "seq_idx": torch.repeat_interleave(
            torch.arange(len(lengths), dtype=torch.int32), torch.tensor(lengths)
        )[None],
        "cu_seqlens": cu_seqlens,
        "dt_softplus": True,
        "track_seq_idx": torch.tensor([seq for seq, _ in tracked]),
        "track_end_locs": torch.tensor([end for _, end in tracked]),
        "state_dtype": torch.float32,
        "return_varlen_states": True,
        "return_track_states": True,
    }
    inputs["chunk_indices"], inputs["chunk_offsets"] = logical_chunks(cu_seqlens.tolist(), case["chunk"])
    return inputs


def logical_chunks(bounds: list[int], chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pieces of chunks that belong to one sequence: the chunk of each, and where in it the piece starts."""
    cuts = sorted({*bounds[:-1], *range(0, bounds[-1], chunk)})
    pieces = torch.tensor(cuts, dtype=torch.int32)
    return pieces // chunk, pieces % chunk


def conv_inputs(name: str) -> dict:
    """Arguments of the ragged convolution; the engine hands x over as a transposed slice."""
    case = BASE | SCANS[name]
    torch.manual_seed(sorted(SCANS).index(name))
    count, tokens, dim = len(case["lengths"]), sum(case["lengths"]), 24
    return {
        "x": torch.randn(tokens, dim + 8)[:, 4:-4].transpose(0, 1),
        "weight": torch.randn(dim, 4),
        "bias": torch.randn(dim),
        "conv_states": torch.randn(count + 2, dim, 3),
        "query_start_loc": torch.tensor([0, *torch.tensor(case["lengths"]).cumsum(0)], dtype=torch.int32),
        "seq_lens_cpu": case["lengths"],
        "cache_indices": torch.arange(count, 0, -1, dtype=torch.int32),
        "has_initial_state": torch.tensor(case["warm"]),
        "activation": "silu",
    }


def step_inputs() -> tuple[dict, dict]:
    """Arguments of one decoding step's convolution and state update: three requests and a padding row."""
    torch.manual_seed(1)
    slots, dim, groups = torch.tensor([3, 1, -1, 4], dtype=torch.int32), 24, 2
    conv = {
        "x": torch.randn(4, dim),
        "conv_state": torch.randn(6, dim, 3),
        "weight": torch.randn(dim, 4),
        "bias": torch.randn(dim),
        "activation": "silu",
        "conv_state_indices": slots,
    }
    update = {
        "state": torch.randn(6, HEADS, HEAD_DIM, STATE),
        "x": torch.randn(4, HEADS, HEAD_DIM),
        "dt": torch.randn(4, HEADS)[:, :, None].expand(-1, -1, HEAD_DIM),
        "A": -torch.rand(HEADS)[:, None, None].expand(-1, HEAD_DIM, STATE),
        "B": torch.randn(4, groups, STATE),
        "C": torch.randn(4, groups, STATE),
        "D": torch.randn(HEADS)[:, None].expand(-1, HEAD_DIM),
        "z": torch.randn(4, HEADS, HEAD_DIM),
        "dt_bias": torch.randn(HEADS)[:, None].expand(-1, HEAD_DIM),
        "dt_softplus": True,
        "state_batch_indices": slots,
        "out": torch.zeros(4, HEADS, HEAD_DIM),
    }
    return conv, update


def track_inputs() -> dict:
    """Arguments of the copy of tracked states: two of three requests are tracked."""
    torch.manual_seed(2)
    return {
        "conv_states": torch.randn(7, 24, 3),
        "ssm_states": torch.randn(7, HEADS, HEAD_DIM, STATE),
        "cache_indices": torch.tensor([1, 2, 3]),
        "mamba_track_mask": torch.tensor([True, False, True]),
        "mamba_track_indices": torch.tensor([4, 5, 6]),
        "batch_size": 3,
    }


def clone(inputs: dict) -> dict:
    """The same arguments for another run: the operators write into some of them."""
    return {
        key: value.clone() if isinstance(value, torch.Tensor) and value.is_contiguous() else value
        for key, value in inputs.items()
    }


def run_kernels() -> dict:
    """Outputs of SGLang's Triton kernels for every case above."""
    from sglang.kernels.ops.mamba import mamba_state_scatter_triton as scatter
    from sglang.kernels.ops.mamba.causal_conv1d_triton import causal_conv1d_fn, causal_conv1d_update
    from sglang.kernels.ops.mamba.triton_ops import mamba_ssm, ssd_combined

    stages = {}
    for stage in (
        "_chunk_cumsum_fwd",
        "_chunk_state_fwd",
        "_state_passing_fwd",
        "_bmm_chunk_fwd",
        "_chunk_scan_fwd",
    ):
        setattr(ssd_combined, stage, _record(getattr(ssd_combined, stage), stages))
    results = {"scan": {}, "conv": {}}
    for name in SCANS:
        stages.clear()
        inputs = scan_inputs(name)
        inputs["out"] = torch.full_like(inputs["x"], float("nan"))
        states, varlen, tracked = ssd_combined.mamba_chunk_scan_combined(**inputs)
        outputs = {"out": inputs["out"], "states": states, "varlen": varlen, "tracked": tracked}
        results["scan"][name] = outputs | {"stages": dict(stages)}
        inputs = clone(conv_inputs(name))
        results["conv"][name] = (causal_conv1d_fn(**inputs), inputs["conv_states"])
    conv, update = map(clone, step_inputs())
    results["conv_step"] = (causal_conv1d_update(**conv), conv["conv_state"])
    mamba_ssm.selective_state_update(**update)
    results["update"] = (update["out"], update["state"])
    track = track_inputs()
    scatter._num_sms = lambda index: 1
    scatter.track_mamba_states_if_needed(**track)
    results["track"] = (track["conv_states"], track["ssm_states"])
    return results


def _record(function, calls: dict):
    def recorded(*args, **kwargs):
        result = function(*args, **kwargs)
        calls[function.__name__] = (args, kwargs, result)
        return result

    return recorded


if __name__ == "__main__":
    os.environ |= {"SGLANG_PLATFORM": "marconi_cpu", "MARCONI_CPU_MODE": "interpreter"}
    from sglang_hooks import cpu_platform

    cpu_platform.activate()
    from sglang_hooks.cpu_platform import host_memory, triton_interpreter

    host_memory.apply()
    triton_interpreter.apply()
    torch.save(run_kernels(), sys.argv[1])
