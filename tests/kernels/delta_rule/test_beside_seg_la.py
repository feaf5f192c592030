"""Our state pass beside SGLang's own fused kernel of lightning attention, both under the interpreter."""

from __future__ import annotations

import bf16_interpreter
import pytest
import torch

from marconi_kernels.delta_rule import state_pass
from marconi_kernels.plan import CheckpointPlan
from sglang_hooks.recurrence import form, trials
from sglang_hooks.recurrence.form import held
from sglang_hooks.recurrence.trials import lightning_trial

SLOTS, HEADS, DIM = 1, 2, 64  # the kernel takes heads of no less


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for module in (form, trials):
        monkeypatch.setattr(module, "LENGTHS", (70, 1, 9))
        monkeypatch.setattr(module, "ENDS", ((64, 66), (), (7, 7)))
    bf16_interpreter.install(monkeypatch)
    monkeypatch.setattr(state_pass, "runs_triton", lambda tensor: True)
    return monkeypatch


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-3)], ids=["fp32-pool", "bf16-pool"]
)
def test_states_are_those_of_a_prefill_that_ends_there(
    interpreted: pytest.MonkeyPatch, dtype: torch.dtype, tolerance: float
) -> None:
    """From bf16 activations, as a server has them: the kernel adds up in fp32."""
    slopes = torch.tensor([0.5, 0.01]).view(HEADS, 1, 1)
    pool = torch.zeros(SLOTS, HEADS, DIM, DIM, dtype=dtype)
    trial = lightning_trial(pool, slopes, torch.bfloat16)
    found = held(trial)
    assert found.same_outputs
    assert found.error <= tolerance

    from_lists = CheckpointPlan.from_lists

    def early(seqs: list[int], ends: list[int], *rest: object, **more: object) -> CheckpointPlan:
        return from_lists(seqs, [end - 1 for end in ends], *rest, **more)

    interpreted.setattr(CheckpointPlan, "from_lists", early)
    assert held(trial).error > 1e-2
