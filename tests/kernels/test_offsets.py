"""Beyond 262,144 flat tokens offsets no longer fit 32 bits. Memory is reserved here, and hardly touched."""

import pytest
import torch
from kernel_cases import relative_error

from marconi_kernels.mamba2.conv_checkpoint import save_conv_checkpoints_triton
from marconi_kernels.mamba2.ssm_checkpoint import save_ssm_checkpoints_triton, ssm_states_reference
from marconi_kernels.plan import CheckpointPlan

Q = 128
TOKENS = 262_144 + 70
ROW = 8192  # 128 heads · 64, of which only the first two heads are looked at


def reserved(count: int, dtype: torch.dtype) -> torch.Tensor:
    """Address space only: pages that nobody writes stay unbacked."""
    try:
        return torch.empty(count, dtype=dtype)
    except RuntimeError:
        pytest.skip("this machine does not over-commit memory")


def test_ssm_offsets_are_64_bit():
    nchunks = -(-TOKENS // Q)
    x = reserved(TOKENS * ROW, torch.float16).as_strided((TOKENS, 2, 16), (ROW, 16, 1))
    B = reserved(TOKENS * ROW, torch.float16).as_strided((TOKENS, 1, 16), (ROW, 16, 1))
    states = reserved(nchunks << 20, torch.float16).as_strided((nchunks, 2, 16, 16), (1 << 20, 256, 16, 1))
    pool = reserved(2_200 << 20, torch.float16).as_strided((2_200, 2, 16, 16), (1 << 20, 256, 16, 1))
    dt, dA = torch.zeros(2, nchunks, Q), torch.zeros(2, nchunks, Q)
    gen = torch.Generator().manual_seed(0)
    live = slice(262_144, TOKENS)
    x[live], B[live] = torch.randn(70, 2, 16, generator=gen), torch.randn(70, 1, 16, generator=gen)
    A = torch.tensor([-0.5, -1.0])
    dt[:, -1, :70] = torch.rand(2, 70, generator=gen)
    dA[:] = (dt.double() * A[:, None, None]).cumsum(-1).float()
    states[-1] = torch.randn(2, 16, 16, generator=gen)
    plan = CheckpointPlan.from_lists([0, 0], [TOKENS - 7, TOKENS], [2_150, 2_199], device="cpu")
    save_ssm_checkpoints_triton(x, B, dt, dA, states, torch.tensor([0, TOKENS]), plan, pool)
    want = ssm_states_reference(
        x[live], B[live], dt[:, -1, :70].t(), A, [0, 70], [0, 0], [63, 70], initial_states=states[-1:]
    )
    assert relative_error(pool[[2_150, 2_199]], want) < 2e-3  # float16 inputs and pool


def test_conv_offsets_are_64_bit():
    x = reserved(TOKENS * ROW, torch.float16).as_strided((8, TOKENS), (1, ROW))
    x[:, -4:] = torch.arange(32).view(8, 4).half()
    pool = reserved(2_200 << 20, torch.float16).as_strided((2_200, 8, 3), (1 << 20, 3, 1))
    pool[2_180] = -torch.arange(24).view(8, 3).half()
    plan = CheckpointPlan.from_lists([0, 1], [TOKENS - 1, TOKENS], [2_199, 2_198], device="cpu")
    cache = {"has_initial_state": torch.tensor([False, True]), "cache_indices": torch.tensor([-1, 2_180])}
    save_conv_checkpoints_triton(x, torch.tensor([0, TOKENS - 1, TOKENS]), plan, pool, **cache)
    assert torch.equal(pool[2_199], x[:, -4:-1])
    assert torch.equal(pool[2_198], torch.cat([pool[2_180, :, 1:], x[:, -1:]], dim=1))
