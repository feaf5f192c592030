"""Checkpoints against the two-pass prefill: states, outputs, and bits where the chunk grids coincide."""

import pytest
import torch
from kernel_cases import assert_two_times_rule, make_batch, nan_pool, plain_states, plan_for, relative_error
from scans import one_pass, two_passes
from upstream_scan import TRITON_STAGES

from marconi_kernels.torch_twins.scan import TORCH_STAGES

SMALL = {"nheads": 2, "headdim": 16, "ngroups": 1, "dstate": 16}


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def scan(batch, *, plan=None, pool=None, stages=TRITON_STAGES):
    return one_pass(batch, stages, plan=plan, pool=pool)


@pytest.mark.parametrize("with_init", [True, False])
def test_same_states_and_outputs(with_init):
    batch = make_batch([45, 51, 40], with_init=with_init, **SMALL)
    seq, end = [0, 0, 1, 1, 1, 2], [1, 45, 45, 64, 70, 130]
    plan, shape = plan_for(seq, end), (2, 16, 16)
    one, two = nan_pool(8, shape), nan_pool(8, shape)
    out_one, final_one = scan(batch, plan=plan, pool=one)
    out_two, final_two = two_passes(batch, TRITON_STAGES, plan, two)
    assert relative_error(one[1:7], two[1:7]) < 2e-5
    assert relative_error(out_one, out_two) < 1e-4
    assert relative_error(final_one, final_two) < 2e-5
    assert torch.equal(one[[0, 7]].isnan(), two[[0, 7]].isnan())
    plain = plain_states(batch, seq, end, batch.chunk_states())
    assert_two_times_rule(one[1:7], plain, batch.reference(seq, end), floor=1e-6)


@pytest.mark.parametrize("with_init", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_same_bits_where_the_chunk_grids_coincide(with_init, seed):
    """A sequence that starts on a chunk multiple has the grid of its prefix alone, so the bits agree."""
    batch = make_batch([64, 32, 45], with_init=with_init, seed=seed, **SMALL)
    seq, end = [0, 0, 1, 1, 2, 2, 2], [33, 50, 65, 90, 97, 127, 141]
    pool = nan_pool(9, (2, 16, 16))
    scan(batch, plan=plan_for(seq, end), pool=pool)
    for row, (s, stop) in enumerate(zip(seq, end, strict=True)):
        tokens = slice(batch.cu[s], stop)
        prefix = make_batch([stop - batch.cu[s]], **SMALL)
        prefix.x, prefix.B, prefix.C, prefix.dt = (t[tokens] for t in (batch.x, batch.B, batch.C, batch.dt))
        prefix.A, prefix.init = batch.A, None if batch.init is None else batch.init[s : s + 1]
        _, saved = scan(prefix)
        assert torch.equal(pool[row + 1], saved[0]), (s, stop)


def resumed(batch, state, cut):
    """The suffix of a one-sequence batch, run from the state at flat token `cut`."""
    rest = make_batch([batch.cu[-1] - cut], chunk_size=batch.chunk_size, **SMALL)
    rest.x, rest.B, rest.C, rest.dt = (t[cut:] for t in (batch.x, batch.B, batch.C, batch.dt))
    rest.A, rest.init = batch.A, state
    return rest


@pytest.mark.parametrize(
    ("stages", "num_tokens", "with_init"),
    [(TRITON_STAGES, 21, True), (TORCH_STAGES, 100, True), (TORCH_STAGES, 100, False)],
    ids=["kernels", "torch-from-a-state", "torch-from-nothing"],
)
def test_resuming_equals_the_uninterrupted_prefill(stages, num_tokens, with_init, monkeypatch):
    """The property that matters: prefix with a checkpoint, then the suffix from it, for each split point."""
    if stages is TORCH_STAGES:
        monkeypatch.delenv("TRITON_INTERPRET")
    batch = make_batch([num_tokens], chunk_size=16, with_init=with_init, **SMALL)
    splits = list(range(num_tokens))
    pool = nan_pool(num_tokens + 1, (2, 16, 16))
    plan = plan_for([0] * num_tokens, splits, first_slot=0)
    out, final = scan(batch, plan=plan, pool=pool, stages=stages)
    assert pool[-1].isnan().all()
    for cut in splits:
        rest_out, rest_final = scan(resumed(batch, pool[[cut]], cut), stages=stages)
        assert relative_error(rest_out[None], out[None, cut:]) < 2e-5, cut
        assert relative_error(rest_final, final) < 2e-5, cut


def test_a_checkpoint_in_the_third_extend_of_a_prompt():
    """Chunked prefill: each extend starts from the state the last one ended with."""
    whole = make_batch([100], chunk_size=16, with_init=True, **SMALL)
    state, start = whole.init, 0
    for stop, plan_end in ((41, None), (73, None), (100, 90)):
        extend = make_batch([stop - start], chunk_size=16, **SMALL)
        tokens = slice(start, stop)
        extend.x, extend.B, extend.C, extend.dt = (t[tokens] for t in (whole.x, whole.B, whole.C, whole.dt))
        extend.A, extend.init = whole.A, state
        pool = nan_pool(2, (2, 16, 16))
        plan = None if plan_end is None else plan_for([0], [plan_end - start])
        _, state = scan(extend, plan=plan, pool=None if plan is None else pool)
        start = stop
    assert relative_error(pool[1:], whole.reference([0], [90])) < 2e-5
    assert relative_error(state, whole.reference([0], [100])) < 2e-5
