"""Checkpoints have the bits of the engine's own varlen states, for any start and end, with the same tile."""

import bf16_interpreter
import pytest
import torch
from kernel_cases import make_batch, nan_pool, plan_for
from upstream_scan import chunk_state_varlen, ssd_chunk_state

from marconi_kernels.mamba2.scan import tile_of
from marconi_kernels.mamba2.ssm_checkpoint import save_ssm_checkpoints_triton

LENGTHS = [45, 51, 40, 120]
SEQ = [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
END = [1, 45, 46, 64, 96, 97, 136, 137, 192, 256]


@pytest.fixture(autouse=True)
def hardware_bf16(monkeypatch):
    bf16_interpreter.install(monkeypatch)


def upstream_states(batch, dt, dA, states, seq, end):
    """(start, end) pairs fed as if they were sequences, as the engine does; every other is kept."""
    bounds = torch.tensor([t for s, e in zip(seq, end, strict=True) for t in (batch.cu[s], e)])
    init = None if batch.init is None else batch.init[seq].repeat_interleave(2, dim=0)[:-1].to(states.dtype)
    return chunk_state_varlen(batch.B, batch.x, dt, dA, bounds, states, initial_states=init)[::2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("with_init", [True, False])
def test_same_bits_as_the_varlen_kernel(dtype, state_dtype, with_init):
    batch = make_batch(LENGTHS, chunk_size=64, with_init=with_init, dtype=dtype)
    dt, dA = batch.chunked()
    states = batch.chunk_states(state_dtype)
    pool = nan_pool(len(SEQ) + 2, (4, 16, 16), state_dtype)
    init = None if batch.init is None else batch.init.to(state_dtype)
    args = (batch.x, batch.B, dt, dA, states, batch.cu_seqlens, plan_for(SEQ, END), pool)
    want = upstream_states(batch, dt, dA, states, SEQ, END)
    tile = tile_of(ssd_chunk_state._chunk_state_varlen_kernel)
    save_ssm_checkpoints_triton(*args, initial_states=init, tile=tile)
    assert torch.equal(pool[1:-1], want)


@pytest.mark.parametrize("block_k", [32, 64])
def test_the_tile_is_followed(block_k, monkeypatch):
    """The engine may have tuned another tile: handed over, it gives that tile's bits."""
    batch = make_batch([200, 56], chunk_size=128, headdim=32, dstate=32, seed=3)
    dt, dA = batch.chunked()
    states = batch.chunk_states()
    kernel = ssd_chunk_state._chunk_state_varlen_kernel
    monkeypatch.setitem(kernel.configs[0].kwargs, "BLOCK_SIZE_K", block_k)
    seq, end = [0, 0, 1], [127, 199, 250]
    pool = nan_pool(5, (4, 32, 32))
    want = upstream_states(batch, dt, dA, states, seq, end)
    tile = tile_of(kernel)
    assert tile["BLOCK_K"] == block_k
    args = (batch.x, batch.B, dt, dA, states, batch.cu_seqlens, plan_for(seq, end), pool)
    save_ssm_checkpoints_triton(*args, initial_states=batch.init, tile=tile)
    assert torch.equal(pool[1:4], want)


def test_head_shards_have_the_bits_of_the_whole():
    """Tensor parallelism: each rank holds a slice of heads and groups, as views or as its own tensors."""
    batch = make_batch(LENGTHS, chunk_size=64, nheads=8, ngroups=4)
    dt, dA = batch.chunked()
    states = batch.chunk_states()
    whole, shards = nan_pool(12, (8, 16, 16)), nan_pool(12, (8, 16, 16))

    def save(heads, groups, pool):
        save_ssm_checkpoints_triton(
            batch.x[:, heads],
            batch.B[:, groups],
            dt[heads],
            dA[heads],
            states[:, heads],
            batch.cu_seqlens,
            plan_for(SEQ, END),
            pool[:, heads],
            initial_states=batch.init[:, heads],
        )

    save(slice(0, 8), slice(0, 4), whole)
    save(slice(0, 4), slice(0, 2), shards)
    save(slice(4, 8), slice(2, 4), shards)
    assert torch.equal(whole.view(torch.int32), shards.view(torch.int32))
