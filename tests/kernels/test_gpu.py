"""The compiled kernels on real hardware: `pytest -m gpu tests/kernels`. Skipped in an ordinary run."""

import pytest
import torch
from kernel_cases import assert_two_times_rule, make_batch, nan_pool, plain_states, plan_for

from marconi_kernels.mamba2.conv_checkpoint import save_conv_checkpoints, save_conv_checkpoints_torch
from marconi_kernels.mamba2.ssm_checkpoint import save_ssm_checkpoints, save_ssm_checkpoints_triton
from marconi_kernels.plan import CheckpointPlan

pytestmark = pytest.mark.gpu

LENGTHS = [300, 129, 256, 1, 470]
SEQ = [0, 0, 0, 1, 1, 2, 2, 3, 4, 4, 4, 4]
END = [0, 1, 300, 301, 384, 430, 685, 686, 686, 768, 900, 1156]
REAL = {"chunk_size": 128, "nheads": 16, "headdim": 64, "ngroups": 2, "dstate": 128}


@pytest.fixture(autouse=True)
def exact_matmuls():
    """Plain torch is the yardstick: no TF32 in it. (Triton's fp32 dot is TF32 by default; see docs/kernels.md.)"""
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    torch.backends.cuda.matmul.allow_tf32 = False


def on_gpu(plan):
    return CheckpointPlan(plan.seq.cuda(), plan.end.cuda(), plan.slot.cuda(), plan.host_rows)


def arguments(batch, plan, pool, state_dtype=torch.float32):
    dt, dA = batch.chunked()
    tensors = (batch.x, batch.B, dt, dA, batch.chunk_states(state_dtype), batch.cu_seqlens)
    return (*(t.cuda() for t in tensors), on_gpu(plan), pool)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("with_init", [True, False])
@pytest.mark.parametrize("change", [{}, {"headdim": 80, "dstate": 96}, {"decay": 40.0}], ids=str)
def test_two_times_rule_on_hardware(dtype, with_init, change):
    batch = make_batch(LENGTHS, dtype=dtype, with_init=with_init, **(REAL | change))
    states = batch.chunk_states()
    pool = nan_pool(len(SEQ) + 2, tuple(states.shape[1:])).cuda()
    init = None if batch.init is None else batch.init.cuda()
    save_ssm_checkpoints(*arguments(batch, plan_for(SEQ, END, pad_to=16), pool), initial_states=init)
    plain = plain_states(batch, SEQ, END, states)
    assert_two_times_rule(pool[1:-1].cpu(), plain, batch.reference(SEQ, END), floor=8 * 2.0**-24)
    assert pool[[0, -1]].isnan().all()


def test_bits_of_the_engines_varlen_kernel():
    """Whatever tile the engine's autotuner takes on this GPU, handed over, gives the same bits."""
    from sglang.kernels.ops.mamba.triton_ops import ssd_chunk_state

    from marconi_kernels.mamba2.scan import tile_of

    batch = make_batch(LENGTHS, dtype=torch.bfloat16, **REAL)
    seq, end = SEQ[1:], END[1:]  # the engine's kernel reads out of bounds for a 0-token checkpoint at 0
    pool = nan_pool(len(seq) + 1, (16, 64, 128)).cuda()
    args = arguments(batch, plan_for(seq, end), pool)
    x, B, dt, dA, states, _, _, _ = args
    init = batch.init.cuda()
    bounds = torch.tensor([t for s, e in zip(seq, end, strict=True) for t in (batch.cu[s], e)], device="cuda")
    repeated = init[seq].repeat_interleave(2, dim=0)[:-1]
    want = ssd_chunk_state.chunk_state_varlen(B, x, dt, dA, bounds, states, initial_states=repeated)[::2]
    tile = tile_of(ssd_chunk_state._chunk_state_varlen_kernel)
    save_ssm_checkpoints(*args, initial_states=init, tile=tile)
    assert torch.equal(pool[1:], want)


def test_conv_is_its_torch_twin():
    x = torch.randn(1156, 512, dtype=torch.bfloat16).t()
    cu = torch.tensor([0, 300, 429, 685, 686, 1156], dtype=torch.int32)
    cache = {"has_initial_state": torch.tensor([True, False, True, True, False])}
    cache["cache_indices"] = torch.arange(20, 25)
    pool = torch.randn(32, 512, 3, dtype=torch.bfloat16)
    twin, plan = pool.clone(), plan_for(SEQ, END, pad_to=16)
    save_conv_checkpoints_torch(x, cu, plan, twin, **cache)
    pool = pool.cuda()
    cache = {name: value.cuda() for name, value in cache.items()}
    save_conv_checkpoints(x.cuda(), cu.cuda(), on_gpu(plan), pool, **cache)
    assert torch.equal(pool.cpu(), twin)


def test_a_captured_graph_follows_the_plan():
    """A launch of fixed size with padding rows, replayed after the plan's tensors were rewritten in place."""
    batch = make_batch(LENGTHS, dtype=torch.bfloat16, **REAL)
    plan = plan_for(SEQ[:2], END[:2], pad_to=16)
    pool = nan_pool(20, (16, 64, 128)).cuda()
    args = arguments(batch, plan, pool)
    init = batch.init.cuda()
    save_ssm_checkpoints(*args, initial_states=init)  # compiles outside of the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        save_ssm_checkpoints(*args, initial_states=init)
    live = args[6]
    new = plan_for(SEQ, END, pad_to=16)
    for name in ("seq", "end", "slot"):
        getattr(live, name).copy_(getattr(new, name))
    pool.fill_(float("nan"))
    graph.replay()
    want = nan_pool(20, (16, 64, 128)).cuda()
    save_ssm_checkpoints(*args[:6], on_gpu(new), want, initial_states=init)
    assert torch.equal(pool.nan_to_num(-1.0), want.nan_to_num(-1.0))


def test_rows_out_of_range_touch_nothing():
    """compute-sanitizer watches this one: nothing may be read or written out of bounds."""
    batch = make_batch(LENGTHS, dtype=torch.bfloat16, **REAL)
    bad = [(0, 301, 0), (9, 20, 0), (-1, 5, 0), (0, -3, 0), (0, 5, 10**9), (10**6, 5, 0), (0, 5, -7)]
    plan = CheckpointPlan.from_lists(*map(list, zip(*bad, strict=True)), device="cpu")
    pool = nan_pool(4, (16, 64, 128)).cuda()
    save_ssm_checkpoints_triton(*arguments(batch, plan, pool), initial_states=batch.init.cuda())
    assert pool.isnan().all()
