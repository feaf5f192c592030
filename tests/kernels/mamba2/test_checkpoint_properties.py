"""Random batches and plans: every saved state obeys the two-times rule, and nothing else is touched."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import assert_two_times_rule, make_batch, nan_pool, plain_states, relative_error
from scans import one_pass, two_passes

from marconi_kernels.mamba2.conv_checkpoint import save_conv_checkpoints_torch, save_conv_checkpoints_triton
from marconi_kernels.mamba2.ssm_checkpoint import save_ssm_checkpoints_torch, save_ssm_checkpoints_triton
from marconi_kernels.plan import CheckpointPlan
from marconi_kernels.torch_twins.scan import TORCH_STAGES

BOUNDED = {"derandomize": True, "suppress_health_check": list(HealthCheck)}


@st.composite
def batches(draw):
    ngroups = draw(st.integers(1, 3))
    return make_batch(
        draw(st.lists(st.integers(1, 70), min_size=1, max_size=4)),
        chunk_size=draw(st.sampled_from([16, 32, 64])),
        nheads=ngroups * draw(st.integers(1, 2)),
        ngroups=ngroups,
        headdim=draw(st.sampled_from([8, 16, 20])),
        dstate=draw(st.sampled_from([16, 24])),
        with_init=draw(st.booleans()),
        dtype=draw(st.sampled_from([torch.float32, torch.float16])),
        decay=draw(st.sampled_from([0.01, 1.0, 40.0])),
        seed=draw(st.integers(0, 2**16)),
    )


@st.composite
def rows(draw, cu, num_slots):
    """(seq, end, slot) rows: any positions, distinct slots, padding in between."""
    slots = draw(st.lists(st.integers(0, num_slots - 1), min_size=1, max_size=6, unique=True))
    out = []
    for slot in slots:
        seq = draw(st.integers(0, len(cu) - 2))
        out.append((seq, draw(st.integers(cu[seq], cu[seq + 1])), slot))
        if draw(st.booleans()):
            out.append((0, 0, -1))
    return out


def check_ssm(save, data):
    batch = data.draw(batches())
    num_slots = 9
    drawn = data.draw(rows(batch.cu, num_slots))
    plan = CheckpointPlan.from_lists(*map(list, zip(*drawn, strict=True)), device="cpu")
    plan.validate(batch.cu, num_slots)
    dt, dA = batch.chunked()
    states = batch.chunk_states()
    pool = nan_pool(num_slots, tuple(states.shape[1:]))
    args = (batch.x, batch.B, dt, dA, states, batch.cu_seqlens, plan, pool)
    save(*args, initial_states=batch.init)
    seq, end, slot = map(list, zip(*[row for row in drawn if row[2] >= 0], strict=True))
    plain = plain_states(batch, seq, end, states)
    assert_two_times_rule(pool[slot], plain, batch.reference(seq, end), floor=8 * 2.0**-24)
    assert pool[[s for s in range(num_slots) if s not in slot]].isnan().all()


@settings(max_examples=60, **BOUNDED)
@given(st.data())
def test_ssm_kernel(data):
    check_ssm(save_ssm_checkpoints_triton, data)


@settings(max_examples=60, **BOUNDED)
@given(st.data())
def test_ssm_torch_twin(data):
    check_ssm(save_ssm_checkpoints_torch, data)


@settings(max_examples=60, **BOUNDED)
@given(st.data())
def test_one_pass_agrees_with_two_passes(data):
    """The engine's CPU path, whole scans: same states, same outputs, same final states."""
    batch = data.draw(batches())
    batch.x, batch.B, batch.C = batch.x.float(), batch.B.float(), batch.C.float()
    drawn = data.draw(rows(batch.cu, 9))
    plan = CheckpointPlan.from_lists(*map(list, zip(*drawn, strict=True)), device="cpu")
    shape = (batch.x.shape[1], batch.x.shape[2], batch.B.shape[2])
    one, two = nan_pool(9, shape), nan_pool(9, shape)
    out_one, final_one = one_pass(batch, TORCH_STAGES, plan=plan, pool=one)
    out_two, final_two = two_passes(batch, TORCH_STAGES, plan, two)
    slots = [slot for _, _, slot in drawn if slot >= 0]
    for got, want in ((one[slots], two[slots]), (final_one, final_two), (out_one[None], out_two[None])):
        assert relative_error(got, want) < 1e-4
    assert torch.equal(one.isnan(), two.isnan())


@settings(max_examples=80, **BOUNDED)
@given(st.data())
def test_conv_kernel_is_its_torch_twin(data):
    lengths = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=4))
    cu = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    width, dim, num_slots = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 20)), 14
    drawn = data.draw(rows(cu, 9))
    plan = CheckpointPlan.from_lists(*map(list, zip(*drawn, strict=True)), device="cpu")
    gen = torch.Generator().manual_seed(width * dim)
    x = torch.randn(dim, cu[-1], generator=gen)
    kernel_pool = torch.randn(num_slots, dim, width, generator=gen)
    twin_pool = kernel_pool.clone()
    cache = {
        "has_initial_state": torch.tensor([data.draw(st.booleans()) for _ in lengths]),
        "cache_indices": torch.arange(9, 9 + len(lengths)),
    }
    save_conv_checkpoints_triton(x, torch.tensor(cu), plan, kernel_pool, **cache)
    save_conv_checkpoints_torch(x, torch.tensor(cu), plan, twin_pool, **cache)
    assert torch.equal(kernel_pool, twin_pool)
