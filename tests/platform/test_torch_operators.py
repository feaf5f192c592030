"""The torch twins against SGLang's own Triton kernels under the interpreter, stage by stage and whole."""

import importlib.util
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import operator_cases
import pytest
import torch
from operator_cases import SCANS, clone, conv_inputs, scan_inputs, step_inputs, track_inputs

if importlib.util.find_spec("sglang") is None:
    pytest.skip("the reference kernels are SGLang's", allow_module_level=True)

from marconi_kernels.mamba2.scan import mamba_chunk_scan_combined
from marconi_kernels.torch_twins import conv as torch_conv
from marconi_kernels.torch_twins import scan as torch_scan
from marconi_kernels.torch_twins import update as torch_update

close = partial(torch.testing.assert_close, rtol=1e-5, atol=2e-5)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> dict:
    """Outputs of the Triton kernels, from a process that interprets them."""
    path = tmp_path_factory.mktemp("reference") / "outputs.pt"
    script = Path(operator_cases.__file__)
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    subprocess.run(
        [sys.executable, script, path], check=True, env=environment, capture_output=True, timeout=600
    )
    return torch.load(path)


@pytest.mark.parametrize("name", SCANS)
def test_whole_scan(reference, name):
    inputs = scan_inputs(name)
    out = torch.full_like(inputs["x"], float("nan"))
    states, varlen, tracked = mamba_chunk_scan_combined(**inputs, out=out, stages=torch_scan.TORCH_STAGES)
    expected = reference["scan"][name]
    close(out, expected["out"])
    close(states, expected["states"])
    close(varlen, expected["varlen"])
    close(tracked, expected["tracked"])


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("stage", ["chunk_cumsum", "chunk_state", "state_passing", "bmm_chunk"])
def test_stage_gives_the_same_intermediates(reference, name, stage):
    """Each stage alone, on the kernels' own inputs: errors of one can't hide behind another's."""
    args, kwargs, expected = reference["scan"][name]["stages"][f"_{stage}_fwd"]
    actual = getattr(torch_scan, stage)(*args, **kwargs)
    for ours, theirs in zip(_tuple(actual), _tuple(expected), strict=True):
        assert ours.dtype == theirs.dtype
        close(ours, theirs)


@pytest.mark.parametrize("name", SCANS)
def test_scan_stage_writes_every_row(reference, name):
    args, kwargs, _ = reference["scan"][name]["stages"]["_chunk_scan_fwd"]
    out = torch.full_like(kwargs["out"], float("nan"))
    torch_scan.chunk_scan(*args, **{**kwargs, "out": out})
    close(out, kwargs["out"])


def test_strong_decay_takes_the_exact_path(monkeypatch, reference):
    """Otherwise the case above would prove nothing about it."""
    taken = []
    exact = torch_scan.scan_exact
    monkeypatch.setattr(torch_scan, "scan_exact", lambda *args: (taken.append(1), exact(*args)))
    test_whole_scan(reference, "decays beyond fp32")
    assert taken
    taken.clear()
    test_whole_scan(reference, "ragged, some warm")
    assert not taken


def test_gated_output_with_d_for_each_channel():
    """z and D [h, p] aren't used by the engine's Mamba2 models, but the signature promises them."""
    inputs = scan_inputs("ragged, some warm")
    inputs["D"] = inputs["D"][:, None].expand(-1, inputs["x"].shape[-1])
    plain, gated = torch.empty_like(inputs["x"]), torch.empty_like(inputs["x"])
    z = torch.randn_like(inputs["x"])
    run = partial(mamba_chunk_scan_combined, stages=torch_scan.TORCH_STAGES)
    run(**inputs, out=plain)
    run(**inputs, out=gated, z=z)
    close(gated, plain * torch.nn.functional.silu(z))


@pytest.mark.parametrize("name", SCANS)
def test_convolution(reference, name):
    inputs = clone(conv_inputs(name))
    out = torch_conv.causal_conv1d_fn(**inputs)
    close(out, reference["conv"][name][0])
    assert torch.equal(inputs["conv_states"], reference["conv"][name][1])


def test_convolution_step(reference):
    conv, _ = step_inputs()
    conv = clone(conv)
    out = torch_conv.causal_conv1d_update(**conv)
    real = conv["conv_state_indices"] >= 0  # the kernel leaves a padding row's output unwritten
    close(out[real], reference["conv_step"][0][real])
    assert torch.equal(conv["conv_state"], reference["conv_step"][1])


def test_convolution_step_refuses_a_circular_buffer():
    conv, _ = step_inputs()
    with pytest.raises(NotImplementedError, match="one token"):
        torch_conv.causal_conv1d_update(**conv, cache_seqlens=torch.zeros(4, dtype=torch.int32))


def test_state_update(reference):
    _, update = step_inputs()
    update = clone(update)
    torch_update.selective_state_update(**update)
    real = update["state_batch_indices"] >= 0
    close(update["out"][real], reference["update"][0][real])
    close(update["state"], reference["update"][1])


def test_state_update_without_shared_strides(reference):
    """A and dt given for each channel, as Mamba1 would: the general path gives the same."""
    _, update = step_inputs()
    update = clone(update)
    for name in ("A", "dt", "dt_bias"):
        update[name] = update[name].contiguous()
    torch_update.selective_state_update(**update)
    close(update["state"], reference["update"][1])


def test_copy_of_tracked_states(reference):
    track = track_inputs()
    torch_update.copy_tracked_states(**track)
    assert torch.equal(track["conv_states"], reference["track"][0])
    assert torch.equal(track["ssm_states"], reference["track"][1])


def _tuple(value):
    return value if isinstance(value, tuple) else (value,)
