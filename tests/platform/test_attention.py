"""The prefill attention of the fast mode against the plain formula."""

import pytest
import torch

pytest.importorskip("sglang_hooks.cpu_platform.attention")

from sglang_hooks.cpu_platform.attention import ROW_BLOCK, attend


@pytest.mark.parametrize(("prefix", "new"), [(0, 7), (5, 1), (300, ROW_BLOCK), (10, ROW_BLOCK + 3)])
def test_rows_after_a_prefix(prefix, new):
    torch.manual_seed(0)
    query = torch.randn(4, new, 8)
    key, value = torch.randn(2, 2, prefix + new, 8).unbind()
    rows = attend(query, key, value, prefix=prefix, scale=0.3, gqa=True)
    key, value = (t.repeat_interleave(2, dim=0).double() for t in (key, value))
    scores = 0.3 * query.double() @ key.transpose(1, 2)
    future = torch.ones(new, prefix + new, dtype=torch.bool).triu(prefix + 1)
    expected = torch.softmax(scores.masked_fill(future, float("-inf")), dim=-1) @ value
    torch.testing.assert_close(rows.double(), expected, rtol=1e-5, atol=1e-6)
