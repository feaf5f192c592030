"""The recurrent layers that this process runs: with pipeline parallelism, those of its own stage."""

from __future__ import annotations

from collections.abc import Collection

from sglang.srt.layers.utils.common import PPMissingLayer
from torch import nn


def layers_here(model: nn.Module, recurrent: Collection[int]) -> int:
    """How many of the model's `recurrent` layers, by index, this process runs.

    SGLang's pool lists all of them where a model doesn't say where its stage begins (Nemotron-H), and the stage's
    alone where it does; layers of other stages are placeholders in the model's list in either case.
    """
    elsewhere = {
        index
        for layers in model.modules()
        if isinstance(layers, nn.ModuleList)
        for index, layer in enumerate(layers)
        if isinstance(layer, PPMissingLayer)
    }
    return len(set(recurrent) - elsewhere)
