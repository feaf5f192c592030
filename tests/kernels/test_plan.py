"""Plans: padding, host rows, and a ValueError that names the argument for every plan that does not fit."""

import pytest
import torch
from kernel_cases import make_batch, nan_pool, plan_for

from marconi_kernels.mamba2.conv_checkpoint import save_conv_checkpoints, save_conv_checkpoints_triton
from marconi_kernels.mamba2.ssm_checkpoint import save_ssm_checkpoints, save_ssm_checkpoints_triton
from marconi_kernels.plan import CheckpointPlan

CU = [0, 5, 12]


def from_lists(seq, end, slot, **kwargs):
    return CheckpointPlan.from_lists(seq, end, slot, device="cpu", **kwargs)


def test_padding_rows_are_skipped_slots():
    plan = from_lists([1], [7], [3], pad_to=3)
    assert (
        plan.seq.tolist() == [1, 0, 0]
        and plan.end.tolist() == [7, 0, 0]
        and plan.slot.tolist() == [3, -1, -1]
    )
    assert len(plan) == 3
    plan.validate(CU, num_slots=4)


def test_rows_are_the_same_from_tensors():
    plan = from_lists([1, 0], [7, 2], [3, 1])
    bare = CheckpointPlan(plan.seq, plan.end, plan.slot)
    assert bare.rows() == plan.rows() == ((1, 7, 3), (0, 2, 1))


@pytest.mark.parametrize(
    ("name", "seq", "end", "slot"),
    [
        ("slot", [0], [3], [4]),
        ("slot", [0, 1], [3, 7], [2, 2]),
        ("seq", [2], [3], [0]),
        ("seq", [-1], [3], [0]),
        ("end", [0], [6], [0]),
        ("end", [1], [4], [0]),
        ("end", [1], [13], [0]),
        ("end", [0], [-1], [0]),
    ],
)
def test_validate_names_the_argument(name, seq, end, slot):
    with pytest.raises(ValueError, match=f"^{name}: row"):
        from_lists(seq, end, slot).validate(CU, num_slots=4)


def test_positions_may_repeat_and_padding_hold_anything():
    from_lists([1, 1, 99], [7, 7, 10**9], [0, 1, -5]).validate(CU, num_slots=2)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("end", lambda: from_lists([0], [1, 2], [0])),
        ("slot", lambda: from_lists([0], [1], [])),
        ("pad_to", lambda: from_lists([0, 0], [1, 2], [0, 1], pad_to=1)),
        ("seq", lambda: CheckpointPlan(torch.zeros(1), torch.zeros(1), torch.zeros(1))),
        ("end", lambda: CheckpointPlan(torch.zeros(1).int(), torch.zeros(1).int(), torch.zeros(1).long())),
        ("slot", lambda: CheckpointPlan(torch.zeros(1).int(), torch.zeros(1).long(), torch.zeros(2).long())),
        (
            "end",
            lambda: CheckpointPlan(torch.zeros(2).int(), torch.zeros(4).long()[::2], torch.zeros(2).long()),
        ),
    ],
)
def test_construction_names_the_argument(name, build):
    with pytest.raises(ValueError, match=f"^{name}:"):
        build()


def ssm_arguments():
    batch = make_batch([20, 30])
    dt, dA = batch.chunked()
    return {
        "x": batch.x,
        "B": batch.B,
        "dt": dt,
        "dA_cumsum": dA,
        "states": batch.chunk_states(),
        "cu_seqlens": batch.cu_seqlens,
        "plan": plan_for([0], [10]),
        "pool": nan_pool(3, (4, 16, 16)),
        "initial_states": batch.init,
    }


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("x", torch.zeros(50, 64)),
        ("B", torch.zeros(49, 2, 16)),
        ("B", torch.zeros(50, 3, 16)),
        ("B", torch.zeros(50, 2, 16, dtype=torch.float16)),
        ("dt", torch.zeros(4, 2, 31)),
        ("dt", torch.zeros(4, 2, 32, dtype=torch.float64)),
        ("dA_cumsum", torch.zeros(3, 2, 32)),
        ("dA_cumsum", torch.zeros(4, 3, 32)),
        ("states", torch.zeros(2, 4, 16, 15)),
        ("cu_seqlens", torch.tensor([0])),
        ("cu_seqlens", torch.tensor([0.0, 50.0])),
        ("cu_seqlens", torch.tensor([0, 20, 51])),
        ("cu_seqlens", torch.tensor([0, 20, 10])),
        ("pool", torch.zeros(3, 4, 16)),
        ("pool", torch.zeros(3, 4, 8, 16)),
        ("pool", torch.zeros(3, 4, 16, 16, dtype=torch.int32)),
        ("initial_states", torch.zeros(1, 4, 16, 16)),
        ("pool", torch.zeros(3, 4, 16, 16, device="meta")),
    ],
)
def test_ssm_launcher_names_the_argument(name, bad):
    with pytest.raises(ValueError, match=f"^{name}:"):
        save_ssm_checkpoints(**{**ssm_arguments(), name: bad})


@pytest.mark.parametrize(
    ("name", "plan"), [("slot", ([0], [10], [3])), ("end", ([0], [21], [0])), ("seq", ([2], [21], [0]))]
)
def test_ssm_launcher_checks_the_plan_and_leaves_the_pool(name, plan):
    arguments = {**ssm_arguments(), "plan": from_lists(*plan)}
    with pytest.raises(ValueError, match=f"^{name}:"):
        save_ssm_checkpoints(**arguments)
    assert arguments["pool"].isnan().all()


def conv_arguments():
    return {
        "x": torch.zeros(6, 12),
        "cu_seqlens": torch.tensor(CU),
        "plan": plan_for([0], [4]),
        "pool": nan_pool(5, (6, 3)),
        "has_initial_state": torch.tensor([True, False]),
        "cache_indices": torch.tensor([3, 4]),
    }


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("x", {"x": torch.zeros(6)}),
        ("pool", {"pool": torch.zeros(5, 7, 3)}),
        ("pool", {"pool": torch.zeros(5, 6, 3, dtype=torch.float64)}),
        ("cu_seqlens", {"cu_seqlens": torch.tensor([0, 5, 13])}),
        ("cache_indices", {"cache_indices": None}),
        ("cache_indices", {"cache_indices": torch.tensor([3])}),
        ("cache_indices", {"cache_indices": torch.tensor([5, 4])}),
        ("has_initial_state", {"has_initial_state": torch.tensor([1, 0])}),
        ("slot", {"plan": from_lists([0], [4], [3])}),  # would overwrite a cached window that is still needed
        ("slot", {"plan": from_lists([0], [4], [5])}),
    ],
)
def test_conv_launcher_names_the_argument(name, change):
    with pytest.raises(ValueError, match=f"^{name}:"):
        save_conv_checkpoints(**{**conv_arguments(), **change})


BAD_ROWS = [(0, 51, 0), (1, 19, 0), (2, 20, 0), (-1, 5, 0), (0, -3, 0), (0, 5, 3), (0, 5, -1), (10**6, 5, 0)]


@pytest.mark.parametrize("row", BAD_ROWS, ids=str)
def test_kernels_skip_rows_out_of_range(row):
    """A plan on a GPU is not read back: the kernels must neither read nor write through such a row."""
    plan = from_lists(*([v] for v in row))
    arguments = {**ssm_arguments(), "plan": plan}
    save_ssm_checkpoints_triton(**arguments)
    assert arguments["pool"].isnan().all()
    pool = nan_pool(3, (6, 2))
    save_conv_checkpoints_triton(torch.zeros(6, 50), torch.tensor([0, 20, 50]), plan, pool)
    assert pool.isnan().all()
