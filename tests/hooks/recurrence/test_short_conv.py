"""Zaya's two windows, saved around SGLang's own prefill step: those of a prefill that ends at the checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hook_functions import hooked
from sglang.srt.models.zaya import cca_extend

from sglang_hooks.recurrence import short_conv
from sglang_hooks.recurrence.interface import ArmedCheckpoints, SaverContext
from sglang_hooks.recurrence.short_conv import SHORT_CONV, ShortConvSaver

CHANNELS, HIDDEN, PADDING, REQUESTS, SLOTS = 6, 5, 3, 3, 20


class Pool:
    """Slots are virtual = physical."""

    def translate_mamba_indices(self, slots: torch.Tensor) -> torch.Tensor:
        return slots


def pools() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(SLOTS, CHANNELS, PADDING, generator=generator),
        torch.randn(SLOTS, HIDDEN, 1, generator=generator),
    )


def prefill(
    lengths: list[int], warm: list[bool], tokens: dict[str, list[torch.Tensor]], run
) -> list[torch.Tensor]:
    """One layer's step over the first `lengths` tokens of each request. Returns the two pools."""
    conv, previous = pools()
    rows = [r for r, n in enumerate(lengths) if n]
    qk, hidden = (torch.cat([tokens[name][r][: lengths[r]] for r in rows]) for name in ("qk", "hidden"))
    torch.manual_seed(0)
    layer = torch.nn.Conv1d(CHANNELS, CHANNELS, PADDING + 1)
    run(
        cca_extend,
        qk,
        hidden,
        layer,
        conv,
        previous,
        rows,
        [warm[r] for r in rows],
        [lengths[r] for r in rows],
        PADDING,
    )
    return [conv, previous]


@torch.no_grad()
def test_zayas_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for case in range(20):
        generator = torch.Generator().manual_seed(case)
        lengths = [int(rng.integers(1, 9)) for _ in range(REQUESTS)]
        warm = [bool(rng.integers(2)) for _ in range(REQUESTS)]
        tokens = {
            "qk": [torch.randn(n, CHANNELS, generator=generator) for n in lengths],
            "hidden": [torch.randn(n, HIDDEN, generator=generator) for n in lengths],
        }
        saver, armed = ShortConvSaver(SaverContext(1, lambda name, n: None)), ArmedCheckpoints()
        picks = [(r, int(rng.integers(1, lengths[r] + 1))) for r in rng.integers(0, REQUESTS, 5)]
        for number, (row, offset) in enumerate(picks):
            armed.add(int(row), offset, sum(lengths[:row]) + offset, torch.tensor([REQUESTS + number]))
        saver.begin(armed)
        saver.bind(Pool())
        monkeypatch.setattr(short_conv, "live_saver", lambda kind, saver=saver: saver)
        found = prefill(lengths, warm, tokens, hooked(SHORT_CONV.hooks, "zaya.cca_extend"))
        assert saver.missed() is None
        for number, (row, offset) in enumerate(picks):
            ends = [offset if r == row else 0 for r in range(REQUESTS)]
            alone = prefill(ends, warm, tokens, lambda original, *args: original(*args))
            for ours, expected in zip(found, alone, strict=True):
                assert torch.equal(ours[REQUESTS + number], expected[row])


def test_a_missed_layer_is_said() -> None:
    saver = ShortConvSaver(SaverContext(2, lambda name, n: None))
    assert saver.missed() == "0 prefill convolutions of 2 recurrent layers"
