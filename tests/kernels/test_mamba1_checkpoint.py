"""Mamba1 states at any tokens against the float64 recurrence; plans grouped by sequence."""

import pytest
import torch
from kernel_cases import nan_pool, plan_for, relative_error

from marconi_kernels.grouped_plan import group_by_sequence
from marconi_kernels.mamba1_checkpoint import (
    mamba1_states_reference,
    save_mamba1_checkpoints,
    save_mamba1_checkpoints_torch,
    save_mamba1_checkpoints_triton,
)
from marconi_kernels.plan import CheckpointPlan

DIM, STATE = 40, 12
CU = [0, 9, 9, 30]
SEQ = [2, 0, 0, 2, 2, 0, 1, 2]
END = [20, 0, 9, 30, 9, 4, 9, 20]
INITIAL = [15, 14, -1]


def inputs():
    gen = torch.Generator().manual_seed(1)
    x = torch.randn(30, DIM, generator=gen)
    dt = torch.nn.functional.softplus(torch.randn(30, DIM, generator=gen))
    A = -torch.rand(DIM, STATE, generator=gen)
    B = torch.randn(30, STATE, generator=gen)
    init = torch.randn(2, DIM, STATE, generator=gen)
    return x, dt, A, B, init


def test_grouping_sorts_and_drops_what_does_not_fit():
    rows = [(1, 12, 3), (0, 5, 9), (0, 5, -1), (0, 2, 8), (7, 2, 1), (1, 4, 0), (0, 3, 99), (1, 9, 2)]
    plan = CheckpointPlan.from_lists(*map(list, zip(*rows, strict=True)), device="cpu")
    grouped = group_by_sequence(plan, torch.tensor([0, 5, 12]), num_slots=10)
    live = int(grouped.first[-1])
    assert grouped.first.tolist() == [0, 2, 4]
    assert list(zip(grouped.end.tolist(), grouped.slot.tolist(), strict=True))[:live] == [
        (2, 8),
        (5, 9),
        (9, 2),
        (12, 3),
    ]


@pytest.mark.parametrize("save", [save_mamba1_checkpoints_triton, save_mamba1_checkpoints_torch])
def test_matches_the_recurrence(save):
    x, dt, A, B, init = inputs()
    pool = nan_pool(17, (DIM, 1, STATE))[:, :, 0]
    pool[14:16] = init
    cu_seqlens = torch.tensor(CU)
    plan = group_by_sequence(plan_for(SEQ, END, pad_to=11), cu_seqlens, 17)
    save(x, dt, A, B, cu_seqlens, plan, pool, initial_indices=torch.tensor(INITIAL))
    initial = torch.stack([init[1], init[0], torch.zeros(DIM, STATE)])
    want = mamba1_states_reference(x, dt, A, B, CU, SEQ, END, initial)
    assert relative_error(pool[1:9], want) < 2e-6
    assert pool[[0, *range(9, 14), 16]].isnan().all() and torch.equal(pool[14:16], init)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("dt", {"dt": torch.zeros(30, DIM + 1)}),
        ("B", {"B": torch.zeros(29, STATE)}),
        ("pool", {"pool": torch.zeros(4, DIM, STATE + 1)}),
        ("initial_indices", {"initial_indices": torch.tensor([0])}),
    ],
)
def test_bad_arguments_are_named(name, change):
    x, dt, A, B, _ = inputs()
    cu_seqlens = torch.tensor(CU)
    plan = group_by_sequence(plan_for([0], [3]), cu_seqlens, 4)
    good = {"x": x, "dt": dt, "A": A, "B": B, "cu_seqlens": cu_seqlens, "plan": plan}
    good |= {"pool": nan_pool(4, (DIM, STATE)), "initial_indices": torch.tensor([-1, -1, -1])}
    with pytest.raises(ValueError, match=f"^{name}:"):
        save_mamba1_checkpoints(**{**good, **change})
