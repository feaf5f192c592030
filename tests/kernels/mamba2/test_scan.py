"""The scan entry point with SGLang's Triton stages under the interpreter: same returns, exact checkpoints."""

import pytest
import torch
from kernel_cases import make_batch, nan_pool, plan_for, relative_error
from sglang.srt.layers.attention.mamba.mamba2_metadata import Mamba2Metadata
from upstream_scan import TRITON_STAGES, upstream_scan

from marconi_kernels.mamba2.scan import mamba_chunk_scan_combined
from marconi_kernels.plan import CheckpointPlan

SMALL = {"nheads": 2, "headdim": 16, "ngroups": 1, "dstate": 16}


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # makes the launchers take the kernels in this process


def scan_arguments(batch, **extra):
    indices = offsets = None
    if batch.init is not None:
        indices, offsets = Mamba2Metadata._query_start_loc_to_chunk_indices_offsets(
            batch.cu_seqlens, batch.chunk_size, batch.x.shape[0]
        )
    # dt in the batch is after softplus: no dt_softplus here.
    return {
        "x": batch.x[None],
        "dt": batch.dt[None],
        "A": batch.A,
        "B": batch.B[None],
        "C": batch.C[None],
        "chunk_size": batch.chunk_size,
        "D": torch.ones(batch.x.shape[1]),
        "initial_states": batch.init,
        "seq_idx": batch.seq_idx,
        "chunk_indices": indices,
        "chunk_offsets": offsets,
        "cu_seqlens": batch.cu_seqlens,
        "out": torch.full_like(batch.x[None], float("nan")),
        "return_varlen_states": True,
        "return_track_states": True,
        "state_dtype": torch.float32,
        **extra,
    }


@pytest.mark.parametrize("with_init", [True, False])
def test_same_as_upstream_with_checkpoints_beside(with_init):
    batch = make_batch([45, 51, 40], with_init=with_init, **SMALL)
    ours, theirs = scan_arguments(batch), scan_arguments(batch)
    seq, end = [0, 0, 1, 2], [0, 33, 70, 136]
    pool = nan_pool(6, (2, 16, 16))
    states, varlen, track = mamba_chunk_scan_combined(
        **ours, stages=TRITON_STAGES, checkpoint_plan=plan_for(seq, end), checkpoint_pool=pool
    )
    want_states, want_varlen, want_track = upstream_scan(**theirs)
    assert torch.equal(ours["out"], theirs["out"])
    assert torch.equal(states, want_states) and torch.equal(varlen, want_varlen)
    assert track is None and want_track is None
    assert relative_error(pool[1:5], batch.reference(seq, end)) < 2e-5
    assert torch.equal(pool[4], varlen[2])  # the end of a sequence is a checkpoint like any other
    assert pool[[0, 5]].isnan().all()


def test_upstreams_tracked_positions_keep_their_bits():
    batch = make_batch([64, 51, 40], **SMALL)
    tracked = {
        "track_seq_idx": torch.tensor([0, 1, 2]),
        "track_end_locs": torch.tensor([40, 96, 130], dtype=torch.int32),
    }
    _, _, track = mamba_chunk_scan_combined(**scan_arguments(batch, **tracked), stages=TRITON_STAGES)
    _, _, want = upstream_scan(**scan_arguments(batch, **tracked))
    assert track.shape == want.shape and torch.equal(track, want)


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("intermediate", [False, True])
@pytest.mark.parametrize("varlen", [False, True])
def test_returns_what_upstream_returns(final, intermediate, varlen):
    batch = make_batch([40], with_init=False, **SMALL)
    asked = {
        "return_final_states": final,
        "return_intermediate_states": intermediate,
        "return_varlen_states": varlen,
        "return_track_states": False,
    }
    got = mamba_chunk_scan_combined(**scan_arguments(batch, **asked), stages=TRITON_STAGES)
    want = upstream_scan(**scan_arguments(batch, **asked))
    assert type(got) is type(want)
    pairs = zip(got, want, strict=True) if isinstance(want, tuple) else [(got, want)]
    assert all(w is None or torch.equal(g, w) for g, w in pairs)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("return_track_states", {"return_varlen_states": False}),
        ("cu_seqlens", {"cu_seqlens": None}),
        ("checkpoint_pool", {"checkpoint_pool": None}),
        ("pool", {"checkpoint_pool": nan_pool(6, (2, 16, 17))}),
        ("pool", {"checkpoint_pool": nan_pool(6, (2, 16, 16), torch.float64)}),
        ("slot", {"checkpoint_plan": CheckpointPlan.from_lists([0], [3], [6], device="cpu")}),
        ("end", {"checkpoint_plan": CheckpointPlan.from_lists([0], [41], [0], device="cpu")}),
        ("chunk_size", {"chunk_size": 24}),
        ("A", {"A": torch.ones(3)}),
        ("dt", {"dt": torch.ones(1, 40, 3)}),
        ("initial_states", {"initial_states": torch.ones(2, 2, 16, 16)}),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_arguments_are_named_before_any_stage_runs(name, change):
    batch = make_batch([40], with_init=False, **SMALL)
    good = {"checkpoint_plan": plan_for([0], [3]), "checkpoint_pool": nan_pool(6, (2, 16, 16))}
    with pytest.raises(ValueError, match=rf"^{name}:"):
        mamba_chunk_scan_combined(**{**scan_arguments(batch), **good, **change}, stages=None)
