"""bfloat16 and float16 inputs and pools against the float64 recurrence, by the two-times rule."""

import bf16_interpreter
import pytest
import torch
from kernel_cases import assert_two_times_rule, make_batch, nan_pool, plain_states, plan_for

from marconi_kernels.mamba2.ssm_checkpoint import save_ssm_checkpoints_torch, save_ssm_checkpoints_triton

LENGTHS = [45, 51, 40]
SEQ = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
END = [0, 1, 33, 45, 45, 46, 70, 96, 97, 128, 136]


@pytest.fixture(autouse=True)
def hardware_bf16(monkeypatch):
    bf16_interpreter.install(monkeypatch)


@pytest.mark.parametrize("save", [save_ssm_checkpoints_triton, save_ssm_checkpoints_torch])
@pytest.mark.parametrize("with_init", [True, False])
@pytest.mark.parametrize("decay", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_two_times_rule(save, dtype, decay, with_init):
    batch = make_batch(LENGTHS, dtype=dtype, decay=decay, with_init=with_init)
    dt, dA = batch.chunked()
    states = batch.chunk_states()
    pool = nan_pool(len(SEQ) + 1, (4, 16, 16))
    args = (batch.x, batch.B, dt, dA, states, batch.cu_seqlens, plan_for(SEQ, END), pool)
    save(*args, initial_states=batch.init)
    plain = plain_states(batch, SEQ, END, states)
    assert_two_times_rule(pool[1:], plain, batch.reference(SEQ, END), floor=4 * 2.0**-24)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_pool_rounds_to_nearest_once(dtype):
    batch = make_batch(LENGTHS)
    dt, dA = batch.chunked()
    wide, narrow = nan_pool(len(SEQ) + 1, (4, 16, 16)), nan_pool(len(SEQ) + 1, (4, 16, 16), dtype)
    for pool in (wide, narrow):
        args = (batch.x, batch.B, dt, dA, batch.chunk_states(), batch.cu_seqlens, plan_for(SEQ, END), pool)
        save_ssm_checkpoints_triton(*args, initial_states=batch.init)
    assert torch.equal(narrow[1:], wide[1:].to(dtype))
