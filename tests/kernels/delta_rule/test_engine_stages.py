"""Our state pass inside SGLang's own Triton pipelines, under the interpreter: every state is that of a prefill that
ends there, and the layer's outputs keep their bits, in place of the engine's stage and beside it."""

from __future__ import annotations

from contextlib import nullcontext

import bf16_interpreter
import pytest
import torch
import triton.language as tl

from marconi_kernels.delta_rule import state_pass
from marconi_kernels.delta_rule.state_pass import delta_state_pass_triton
from sglang_hooks.recurrence import form, in_kernel, trials
from sglang_hooks.recurrence.form import held
from sglang_hooks.recurrence.in_kernel import DeltaStages
from sglang_hooks.recurrence.trials import delta_trial

SLOTS, HEADS, KEY_HEADS, VALUE, KEY = 1, 2, 1, 16, 16
per_key = pytest.mark.parametrize("per_key", [False, True], ids=["gdn", "kda"])


def early(*args, **kwargs):
    """The control: each state is one token early, where it can be."""
    plan = args[5]
    args = (*args[:5], type(plan)(plan.first, plan.end - (plan.end % 64 > 1).long(), plan.slot), *args[6:])
    delta_state_pass_triton(*args, **kwargs)


@pytest.fixture
def interpreted(monkeypatch):
    """SGLang's stages on CPU tensors, and a trial that is short enough for the interpreter."""
    for module in (form, trials):
        monkeypatch.setattr(module, "LENGTHS", (70, 1, 9))
        monkeypatch.setattr(module, "ENDS", ((64, 66), (), (7, 7)))
    bf16_interpreter.round_dots_once(monkeypatch)
    bf16_interpreter.install(monkeypatch)
    from sglang.kernels.ops.attention.fla import (
        chunk_delta_h,
        chunk_fwd,
        chunk_intra,
        chunk_o,
        cumsum,
        kda,
        op,
        utils,
    )
    from sglang.kernels.ops.attention.fla import chunk_intra_token_parallel as token_parallel

    monkeypatch.setattr(utils, "custom_device_ctx", lambda index: nullcontext())
    modules = (chunk_delta_h, chunk_fwd, chunk_intra, chunk_o, cumsum, kda, op, token_parallel)
    for module in modules:
        for kernel in vars(module).values():
            while kernel is not None and not hasattr(kernel, "configs"):  # below heuristics
                kernel = getattr(kernel, "fn", None)
            if kernel is not None:
                monkeypatch.setattr(kernel, "configs", kernel.configs[:1])  # choosing one asks for a GPU
        for name in ("exp", "exp2", "log"):  # aliases of tl's, which the interpreter can't replace
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda x, name=name: getattr(tl, name)(x))
    monkeypatch.setattr(state_pass, "runs_triton", lambda tensor: True)
    return monkeypatch


def pipeline(stages, per_key, monkeypatch):
    from sglang.kernels.ops.attention.fla import chunk, chunk_delta_h, chunk_intra, index, kda

    stage, intra = chunk_delta_h.chunk_gated_delta_rule_fwd_h, chunk_intra.chunk_kda_fwd_intra

    def state_stage(**given):
        names = ("g", "gk", "initial_state", "cu_seqlens", "chunk_indices", "track_state")
        given = dict.fromkeys(names) | {"inplace_update": True, "save_new_value": True} | given
        return stages.state_stage(stage, given)

    def solve_stage(**given):
        stages.solving(given["k"])
        return intra(**given)

    for module in (chunk, kda):
        monkeypatch.setattr(module, "chunk_gated_delta_rule_fwd_h", state_stage)
    monkeypatch.setattr(kda, "chunk_kda_fwd_intra", solve_stage)

    def normed(x):
        return (x.float() / x.float().norm(dim=-1, keepdim=True)).to(x.dtype)

    def run(q, k, v, g, beta, initial_state, initial_state_indices, use_qk_l2norm_in_kernel, cu_seqlens):
        more = {
            "scale": KEY**-0.5,
            "initial_state": initial_state,
            "initial_state_indices": initial_state_indices,
            "cu_seqlens": cu_seqlens,
            "chunk_indices": index.prepare_chunk_indices(cu_seqlens, 64),
        }
        if per_key:
            return kda.chunk_kda_fwd(normed(q), normed(k), v.clone(), g, beta, **more)
        return chunk.chunk_gated_delta_rule_fwd(normed(q), normed(k), v, g, beta, **more)[1]

    return run


@pytest.mark.parametrize(
    ("in_place", "dtype"),
    [(True, torch.float32), (False, torch.bfloat16)],
    ids=["in-place-fp32-pool", "beside-bf16-pool"],
)
@per_key
def test_states_are_those_of_a_prefill_that_ends_there(interpreted, per_key, in_place, dtype):
    stages = DeltaStages(("", ""), window_first=per_key)
    stages.in_place = in_place
    pool = torch.zeros(SLOTS, HEADS, VALUE, KEY, dtype=dtype)
    key_heads = HEADS if per_key else KEY_HEADS
    run = pipeline(stages, per_key, interpreted)
    trial = delta_trial(stages, pool, key_heads, torch.bfloat16, per_key=per_key, pipeline=run)
    assert trial.prefill(trial.pool.clone(), form.LENGTHS, None).isfinite().all()
    found = held(trial)
    assert found.same_outputs
    assert found.error <= 1e-6
    if not in_place:
        interpreted.setattr(state_pass, "delta_state_pass_triton", early)
        assert held(trial).error > 1e-2


def test_a_stage_that_is_never_passed_is_seen(interpreted):
    stages = DeltaStages(("", ""), window_first=False)
    trial = delta_trial(
        stages,
        torch.zeros(SLOTS, HEADS, VALUE, KEY),
        KEY_HEADS,
        torch.bfloat16,
        per_key=False,
        pipeline=lambda v, **_: v,
    )
    with pytest.raises(RuntimeError, match="didn't pass the stage"):
        held(trial)


def test_the_module_that_is_patched_is_the_one_that_runs():
    assert in_kernel.delta_state_pass is state_pass.delta_state_pass


@pytest.mark.gpu
@per_key
def test_on_hardware_at_real_heads(monkeypatch, per_key):
    """The compiled kernels in SGLang's compiled pipelines; what it prints says whether in place keeps the bits."""
    stages = DeltaStages(("", ""), window_first=per_key)
    pool = torch.zeros(1, 32, 128, 128, device="cuda")
    run = pipeline(stages, per_key, monkeypatch)
    key_heads = 32 if per_key else 16
    trial = delta_trial(stages, pool, key_heads, torch.bfloat16, per_key=per_key, pipeline=run)
    beside = held(trial)
    assert beside.same_outputs and beside.error < 1e-4
    stages.in_place = True
    print("in place:", held(trial))
