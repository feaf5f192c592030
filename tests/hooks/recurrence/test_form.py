"""When states are saved in the kernel, and when in pieces: a kernel that is wrong here is never used."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from marconi_kernels.plan import CheckpointPlan
from marconi_kernels.torch_twins.lightning import seg_la_fwd
from sglang_hooks.recurrence import form
from sglang_hooks.recurrence.in_kernel import BesideLightning, DeltaStages, InKernel, Trial
from sglang_hooks.recurrence.interface import SaverContext
from sglang_hooks.recurrence.pieces import PieceSaver
from sglang_hooks.recurrence.trials import seg_la_trial


class Counting(InKernel):
    """A recurrence that adds its tokens up. off: what our kernel's states are wrong by; outputs_off: in place"""

    has_stages = True

    def __init__(self, off: float = 0.0, outputs_off: float = 0.0, stock: str | None = None) -> None:
        super().__init__()
        self.off, self.outputs_off, self.stock = off, outputs_off, stock

    def why_not(self, backend: Any) -> str | None:
        return self.stock

    def trial(self, backend: Any, layer: Any, arguments: dict[str, Any]) -> Trial:
        def prefill(pool: torch.Tensor, lengths: Sequence[int], into: CheckpointPlan | None) -> torch.Tensor:
            before = pool[: len(lengths)].clone()
            pool[: len(lengths)] += torch.tensor(lengths).view(-1, 1)
            if into is not None:
                for seq, end, slot in into.rows():
                    pool[slot] = before[seq] + end - sum(lengths[:seq]) + self.off
            return before + (self.outputs_off if into is not None and self.in_place else 0.0)

        return Trial(torch.ones(14, 1), prefill)

    def run(self, *args: Any) -> Any:
        raise NotImplementedError


class TestTheChoice:
    def test_right_states_and_outputs_go_in_place(self, caplog: pytest.LogCaptureFixture) -> None:
        kernel = Counting()
        with caplog.at_level("INFO"):
            assert form.choose(kernel, None, None, {}) and kernel.in_place
        assert "saved in the kernel, in place of" in caplog.text

    def test_other_outputs_put_it_beside(self) -> None:
        kernel = Counting(outputs_off=1e-7)
        assert form.choose(kernel, None, None, {}) and not kernel.in_place

    def test_wrong_states_are_refused(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("INFO"):
            assert not form.choose(Counting(off=-1.0), None, None, {})
        assert "off by" in caplog.text and "pieces and forks" in caplog.text

    def test_states_that_are_no_number_are_refused(self) -> None:
        assert not form.choose(Counting(off=float("nan")), None, None, {})

    def test_other_kernels_of_sglang_are_left_alone(self) -> None:
        assert not form.choose(Counting(stock="FlashInfer has no such stage"), None, None, {})

    def test_a_kernel_that_cannot_be_compiled_is_refused(self, caplog: pytest.LogCaptureFixture) -> None:
        kernel = Counting()
        kernel.trial = lambda *args: 1 / 0  # type: ignore[method-assign]
        with caplog.at_level("INFO"):
            assert not form.choose(kernel, None, None, {})
        assert "ZeroDivisionError" in caplog.text


def test_the_kernel_is_tried_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, wanted in {"": False, form.PIECES: False, form.KERNEL: True}.items():
        monkeypatch.setenv(form.VARIABLE, value)
        assert form.kernel_wanted() == wanted
    monkeypatch.setenv(form.VARIABLE, "kernels")
    with pytest.raises(ValueError, match="MARCONI_STATE_FORM must be pieces or kernel; got 'kernels'"):
        PieceSaver(SaverContext(1, lambda name, n: None))


def test_only_sglangs_own_kernel_class_has_the_stage() -> None:
    stages = DeltaStages((__name__, "Counting"), window_first=False)
    backend = SimpleNamespace(kernel_dispatcher=SimpleNamespace(extend_kernel=Counting()))
    assert stages.why_not(backend) is None
    backend.kernel_dispatcher.extend_kernel = object()
    assert stages.why_not(backend) == "object has no such stage"


def test_lightnings_states_are_those_of_its_own_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    """And an early state is seen."""
    from sglang.kernels.ops.attention.linear import seg_la

    from sglang_hooks.recurrence import in_kernel

    monkeypatch.setattr(seg_la, "seg_la_fwd", seg_la_fwd)
    pool = torch.zeros(1, 4, 16, 16)
    backend = SimpleNamespace(
        linear_backend="seg_la",
        tp_slope=[torch.tensor([0.5, 0.1, 0.02, 0.001]).view(4, 1, 1)],
        req_to_token_pool=SimpleNamespace(mamba2_layer_cache=lambda i: SimpleNamespace(temporal=pool)),
    )
    kernel, layer = BesideLightning(seg_la_trial), SimpleNamespace(layer_id=0)
    trial = kernel.trial(backend, layer, {"k": pool})
    found = form.held(trial)
    assert found.same_outputs and found.error < 1e-6

    whole = in_kernel.KernelPlan.of.__func__
    monkeypatch.setattr(
        in_kernel.KernelPlan,
        "of",
        classmethod(lambda cls, rows, *args, **kw: whole(cls, one_early(rows), *args, **kw)),
    )
    assert form.held(trial).error > 1e-2


def one_early(rows: CheckpointPlan) -> CheckpointPlan:
    return CheckpointPlan.from_lists(
        rows.seq.tolist(), (rows.end - 1).tolist(), rows.slot.tolist(), device="cpu"
    )
