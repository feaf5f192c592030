"""SSM checkpoints, by kernel and torch twin, against the float64 recurrence."""

import pytest
import torch
from kernel_cases import make_batch, nan_pool, plan_for, relative_error

from marconi_kernels.mamba2.ssm_checkpoint import save_ssm_checkpoints_torch, save_ssm_checkpoints_triton

SAVERS = {"triton": save_ssm_checkpoints_triton, "torch": save_ssm_checkpoints_torch}
saver = pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS.keys())

# Three sequences, Q = 32: the second starts inside chunk 1, the third on the boundary of chunk 3.
LENGTHS = [45, 51, 40]
SEQ = [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2]
END = [0, 1, 32, 33, 45, 45, 46, 64, 70, 96, 96, 97, 128, 136]


def save_and_compare(save, batch, seq=SEQ, end=END, *, pool_dtype=torch.float32, bound=2e-5):
    dt, dA = batch.chunked()
    states = batch.chunk_states()
    shape = tuple(states.shape[1:])
    pool = nan_pool(len(seq) + 3, shape, pool_dtype)
    before = pool.clone()
    save(
        batch.x,
        batch.B,
        dt,
        dA,
        states,
        batch.cu_seqlens,
        plan_for(seq, end),
        pool,
        initial_states=batch.init,
    )
    untouched = [0, len(seq) + 1, len(seq) + 2]
    assert torch.equal(pool[untouched].view(torch.uint8), before[untouched].view(torch.uint8))
    assert relative_error(pool[1 : len(seq) + 1], batch.reference(seq, end)) < bound
    return pool


@saver
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"with_init": False},
        {"decay": 0.001},
        {"decay": 60.0},
        {"chunk_size": 64},
        {"chunk_size": 16},
        {"chunk_size": 48},
        {"chunk_size": 256},
        {"chunk_size": 8},
        {"headdim": 24},
        {"dstate": 40},
        {"headdim": 80, "dstate": 96, "nheads": 2, "ngroups": 1},
        {"ngroups": 1},
        {"ngroups": 4},
        {"nheads": 1, "ngroups": 1},
    ],
    ids=str,
)
def test_matches_the_recurrence(save, change):
    save_and_compare(save, make_batch(LENGTHS, **change))


@saver
def test_several_checkpoints_share_a_position(save):
    save_and_compare(save, make_batch(LENGTHS), seq=[1, 1, 1], end=[70, 70, 70])


@saver
@pytest.mark.parametrize("lengths", [[1], [2, 1], [32], [33], [1, 1, 1, 62], [64, 32, 32]], ids=str)
def test_every_position_of_small_batches(save, lengths):
    """All ends of all sequences, among them starts on chunk boundaries."""
    batch = make_batch(lengths, nheads=2, ngroups=1)
    pairs = [(s, e) for s in range(len(lengths)) for e in range(batch.cu[s], batch.cu[s + 1] + 1)]
    pairs = pairs[:: max(1, len(pairs) // 40)]
    save_and_compare(save, batch, [s for s, _ in pairs], [e for _, e in pairs])


@saver
def test_pool_may_be_a_strided_layer(save):
    batch = make_batch(LENGTHS)
    dt, dA = batch.chunked()
    states = batch.chunk_states()
    layers = nan_pool(3 * 6, (16, 4, 16)).view(3, 6, 16, 4, 16).permute(0, 1, 3, 4, 2)  # dstate not innermost
    before = layers.clone()
    args = (batch.x, batch.B, dt, dA, states, batch.cu_seqlens, plan_for([0, 2], [40, 130]), layers[1])
    save(*args, initial_states=batch.init)
    assert relative_error(layers[1, 1:3], batch.reference([0, 2], [40, 130])) < 2e-5
    layers[1, 1:3] = float("nan")
    assert torch.equal(layers.view(torch.int32), before.view(torch.int32))


@saver
def test_padding_rows_write_nothing(save):
    batch = make_batch(LENGTHS)
    dt, dA = batch.chunked()
    pool = nan_pool(4, (4, 16, 16))
    args = (batch.x, batch.B, dt, dA, batch.chunk_states(), batch.cu_seqlens)
    save(*args, plan_for([1], [70], pad_to=8), pool, initial_states=batch.init)
    assert relative_error(pool[1:2], batch.reference([1], [70])) < 2e-5
    assert pool[[0, 2, 3]].isnan().all()


@saver
def test_half_pool_is_rounded_once(save):
    """A float16 pool holds the float32 result, rounded to nearest."""
    batch = make_batch(LENGTHS)
    single = save_and_compare(save, batch)
    half = save_and_compare(save, batch, pool_dtype=torch.float16, bound=1e-3)
    assert torch.equal(half[1 : len(SEQ) + 1], single[1 : len(SEQ) + 1].half())


@saver
def test_inputs_may_be_views_of_a_mixed_batch(save):
    """The mixer splits x and B off one projection, prefill tokens before decode tokens: strided views."""
    batch = make_batch(LENGTHS)
    dt, dA = batch.chunked()
    projected = torch.full(
        (136 + 5, 3 + 64 + 32), float("nan")
    )  # 5 decode tokens; 3 columns of something else
    projected[:136, 3:67], projected[:136, 67:] = batch.x.flatten(1), batch.B.flatten(1)
    x, B = projected[:136, 3:67].unflatten(1, (4, 16)), projected[:136, 67:].unflatten(1, (2, 16))
    pool = nan_pool(len(SEQ) + 1, (4, 16, 16))
    args = (x, B, dt, dA, batch.chunk_states(), batch.cu_seqlens, plan_for(SEQ, END), pool)
    save(*args, initial_states=batch.init)
    assert relative_error(pool[1:], batch.reference(SEQ, END)) < 2e-5


@saver
def test_a_checkpoint_of_no_tokens_is_the_initial_state(save):
    """No decay precedes it: reading dA[-1] there is the engine's own defect."""
    batch = make_batch(LENGTHS)
    dt, dA = batch.chunked()
    pool = nan_pool(2, (4, 16, 16))
    args = (batch.x, batch.B, dt, dA, batch.chunk_states(), batch.cu_seqlens, plan_for([0], [0]), pool)
    save(*args, initial_states=batch.init)
    assert torch.equal(pool[1], batch.init[0])


def test_a_state_that_the_scan_has_made_is_copied():
    """The rows at their sequence's end take the scan's bits; all others are made as ever."""
    batch = make_batch(LENGTHS)
    dt, dA = batch.chunked()
    states, seq, end = batch.chunk_states(), [0, 0, 1, 1, 2], [33, 45, 46, 96, 136]
    finals = torch.randn(3, *states.shape[1:])
    pool = nan_pool(len(seq) + 3, tuple(states.shape[1:]))
    arguments = (batch.x, batch.B, dt, dA, states, batch.cu_seqlens, plan_for(seq, end), pool)
    save_ssm_checkpoints_torch(*arguments, initial_states=batch.init, final_states=finals)
    assert torch.equal(pool[[2, 4, 5]], finals)
    assert relative_error(pool[[1, 3]], batch.reference([0, 1], [33, 46])) < 2e-5
