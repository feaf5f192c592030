"""A pipeline stage counts the recurrent layers that it runs."""

from __future__ import annotations

import pytest
from sglang.srt.layers.utils import PPMissingLayer
from torch import nn

from sglang_hooks.recurrence.stage import layers_here

RECURRENT = {0, 2, 3}


class Model(nn.Module):
    """Six layers of which this stage has some, and another list whose entries have nothing to do with layers."""

    def __init__(self, here: range) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ReLU() if i in here else PPMissingLayer() for i in range(6))
        self.experts = nn.ModuleList(nn.ReLU() for _ in range(3))


@pytest.mark.parametrize(
    ("here", "count"), [(range(6), 3), (range(3), 2), (range(3, 6), 1), (range(4, 6), 0)]
)
def test_layers_of_other_stages_do_not_count(here: range, count: int) -> None:
    assert layers_here(Model(here), RECURRENT) == count
