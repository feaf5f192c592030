"""Conv windows at any token, by kernel and torch twin, against a window built token by token."""

import pytest
import torch
from kernel_cases import nan_pool, plan_for

from marconi_kernels.conv_checkpoint import save_conv_checkpoints_torch, save_conv_checkpoints_triton

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
