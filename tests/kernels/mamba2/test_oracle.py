"""An implementation that shares no line with ours: the paper's listing, as mamba-ssm ships it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from kernel_cases import make_batch, nan_pool, plan_for, relative_error

from marconi_kernels.mamba2.ssm_checkpoint import save_ssm_checkpoints_torch, save_ssm_checkpoints_triton


@pytest.fixture(scope="module")
def ssd_minimal():
    """Load one file by path: importing the package would ask for its CUDA extension."""
    spec = importlib.util.find_spec("mamba_ssm")
    if spec is None:
        pytest.skip("mamba-ssm is not installed (make test installs it)")
    path = Path(spec.submodule_search_locations[0], "modules", "ssd_minimal.py")
    stub = ModuleType("mamba_ssm.ops.triton.ssd_combined")
    stub.mamba_chunk_scan_combined = None  # imported by the file for its own demonstration only
    names = ["mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", stub.__name__]
    sys.modules.update({name: ModuleType(name) for name in names[:3]} | {stub.__name__: stub})
    try:
        spec = importlib.util.spec_from_file_location("ssd_minimal", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        for name in names:
            del sys.modules[name]
    return module.ssd_minimal_discrete


def oracle_state(ssd_minimal, batch, seq, end, block=16):
    """State after tokens [start, end) of one sequence; tokens without input or decay fill the last block."""
    tokens = slice(batch.cu[seq], end)
    pad = -(end - batch.cu[seq]) % block
    dt = batch.dt[tokens].double()
    heads = batch.x.shape[1] // batch.B.shape[1]

    def padded(t):
        return torch.nn.functional.pad(t, (0, 0) * (t.dim() - 1) + (0, pad))[None]

    B = batch.B[tokens].double().repeat_interleave(heads, dim=1)
    x = batch.x[tokens].double() * dt[:, :, None]
    init = None if batch.init is None else batch.init[seq].double()[None, None]
    _, state = ssd_minimal(padded(x), padded(dt * batch.A.double()), padded(B), padded(B), block, init)
    return state[0]


@pytest.mark.parametrize("save", [save_ssm_checkpoints_triton, save_ssm_checkpoints_torch])
@pytest.mark.parametrize("with_init", [True, False])
def test_agrees_with_the_papers_listing(ssd_minimal, save, with_init):
    batch = make_batch([45, 51, 40], with_init=with_init, seed=5)
    seq, end = [0, 0, 0, 1, 1, 1, 2, 2], [1, 32, 45, 46, 64, 96, 97, 136]
    dt, dA = batch.chunked()
    pool = nan_pool(9, (4, 16, 16))
    args = (batch.x, batch.B, dt, dA, batch.chunk_states(), batch.cu_seqlens, plan_for(seq, end), pool)
    save(*args, initial_states=batch.init)
    want = torch.stack([oracle_state(ssd_minimal, batch, s, e) for s, e in zip(seq, end, strict=True)])
    assert relative_error(pool[1:], want) < 2e-5
    assert relative_error(batch.reference(seq, end), want) < 1e-12  # the definition itself
