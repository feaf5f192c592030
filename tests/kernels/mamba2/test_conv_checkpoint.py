"""Conv windows at any token, by kernel and torch twin, against a window built token by token."""

from itertools import pairwise

import pytest
import torch
from kernel_cases import nan_pool, plan_for

from marconi_kernels.mamba2.conv_checkpoint import save_conv_checkpoints_torch, save_conv_checkpoints_triton

SAVERS = {"triton": save_conv_checkpoints_triton, "torch": save_conv_checkpoints_torch}
saver = pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS.keys())

CU = [0, 2, 3, 12]
SEQ = [0, 0, 0, 1, 1, 2, 2, 2, 2, 2]
END = [0, 1, 2, 2, 3, 3, 4, 6, 7, 12]
CACHED = [18, 17, 16]


def expected_window(x, start, end, old, width):
    history = torch.cat([old, x[:, start:end]], dim=1)
    return history[:, history.shape[1] - width :]


@saver
@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "has", [None, [True, True, True], [True, False, True], [False, False, False]], ids=str
)
@pytest.mark.parametrize("transposed", [False, True])
def test_window_at_any_token(save, width, has, transposed):
    gen = torch.Generator().manual_seed(width)
    dim = 10
    x = torch.randn(12, dim, generator=gen).t() if transposed else torch.randn(dim, 12, generator=gen)
    pool = nan_pool(20, (dim, width))
    pool[16:19] = torch.randn(3, dim, width, generator=gen)
    before = pool.clone()
    cache = {}
    if has is not None:
        cache = {
            "has_initial_state": torch.tensor(has),
            "cache_indices": torch.tensor(CACHED, dtype=torch.int32),
        }
    save(x, torch.tensor(CU, dtype=torch.int32), plan_for(SEQ, END, pad_to=14), pool, **cache)
    for row, (seq, end) in enumerate(zip(SEQ, END, strict=True)):
        old = before[CACHED[seq]] if has is not None and has[seq] else torch.zeros(dim, width)
        assert torch.equal(pool[row + 1], expected_window(x, CU[seq], end, old, width)), (seq, end)
    untouched = [0, *range(11, 20)]
    assert torch.equal(pool[untouched].view(torch.int32), before[untouched].view(torch.int32))


@saver
def test_pool_may_be_a_strided_layer_of_another_dtype(save):
    x = torch.randn(6, 9)
    layers = torch.full((2, 5, 3, 6), float("nan"), dtype=torch.float16).transpose(2, 3)
    save(x, torch.tensor([0, 9]), plan_for([0], [5]), layers[1])
    assert torch.equal(layers[1, 1], x[:, 2:5].half())
    assert layers[0].isnan().all() and layers[1, [0, 2, 3, 4]].isnan().all()


@saver
@pytest.mark.parametrize("cuts", [[1, 2], [2, 3], [1, 7], [5, 6]], ids=str)
def test_windows_of_a_prompt_in_three_extends(save, cuts):
    """Extends shorter than the window: each window is that of the prompt taken whole."""
    width, dim, total = 3, 5, 9
    x = torch.randn(dim, total, generator=torch.Generator().manual_seed(7))
    pool = nan_pool(12, (dim, width))
    bounds = [0, *cuts, total]
    for start, stop in pairwise(bounds):
        ends = list(range(stop - start + 1))
        part, cu = x[:, start:stop], torch.tensor([0, stop - start])
        slots = plan_for([0] * len(ends), ends, first_slot=1)
        cache = {"has_initial_state": torch.tensor([start > 0]), "cache_indices": torch.tensor([0])}
        save(part, cu, slots, pool, **cache)
        for end in ends:
            want = expected_window(x, 0, start + end, torch.zeros(dim, width), width)
            assert torch.equal(pool[end + 1], want), (start, end)
        pool[0] = pool[ends[-1] + 1]  # the causal conv leaves the extend's last window in the running slot
