"""The platform is chosen by name only, and is nothing but an entry point otherwise."""

import gc
import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")


def run(code: str, **variables: str) -> subprocess.CompletedProcess:
    """Run `code` in a fresh process without the platform's variables, but for those given."""
    ours = ("SGLANG_PLATFORM", "MARCONI_CPU_MODE", "TRITON_INTERPRET", "OMP_WAIT_POLICY")
    environment = {key: value for key, value in os.environ.items() if key not in ours} | variables
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )


def test_stays_away_unless_named():
    """SGLang resolves its own platform, its kernels and torch stay as they were, nothing is raised or set."""
    done = run(
        "import os, torch; before = dict(os.environ), torch.Tensor.pin_memory\n"
        "from sglang.srt.platforms import current_platform as platform\n"
        "from sglang.srt.plugins import load_plugins; load_plugins()\n"
        "from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend as backend\n"
        "assert 'Marconi' not in type(platform).__name__, platform\n"
        "assert torch.Tensor.pin_memory is before[1] and not hasattr(torch.cpu, 'device')\n"
        "assert backend._run_sdpa_forward_extend.__module__.startswith('sglang.'), backend\n"
        "assert 'OMP_WAIT_POLICY' not in os.environ and 'TRITON_INTERPRET' not in os.environ\n"
        "import sys; assert 'sglang_hooks.cpu_platform.patches' not in sys.modules\n"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Failed to" not in done.stderr, done.stderr[-3000:]


def test_named_it_becomes_the_platform():
    done = run(
        "from sglang.srt.platforms import current_platform as platform\n"
        "assert type(platform).__name__ == 'MarconiCpuPlatform', platform\n"
        "assert platform.is_out_of_tree() and platform.support_mamba_cache_extra_buffer()\n"
        "import sglang_hooks.cpu_platform as ours\n"
        "import gc; assert gc.get_threshold()[0] > 10_000\n"
        "assert ours.fast_mode() and ours.apply() and ours.apply()\n"
        "assert gc.get_threshold()[0] < 10_000\n"
        "from sglang.srt.layers.attention.mamba import mamba\n"
        "from sglang.srt.layers.attention import hybrid_linear_attn_backend as backend\n"
        "modules = {f.__module__ for f in (mamba.causal_conv1d_fn, mamba.causal_conv1d_update_triton,\n"
        "    mamba.mamba_chunk_scan_combined.func, backend.track_mamba_states_if_needed)}\n"
        "assert modules == {'marconi_kernels.torch_twins.conv', 'marconi_kernels.mamba2.scan', "
        "'marconi_kernels.torch_twins.update'}, modules\n",
        SGLANG_PLATFORM="marconi_cpu",
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture
def usual_gc():
    """Activation makes the garbage collector lazy until the patches are applied, which these tests don't."""
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)


@pytest.mark.parametrize(
    ("variables", "active", "fast"),
    [
        ({}, False, False),
        ({"SGLANG_PLATFORM": "other"}, False, False),
        ({"SGLANG_PLATFORM": "marconi_cpu"}, True, True),
        ({"SGLANG_PLATFORM": "marconi_cpu", "MARCONI_CPU_MODE": "interpreter"}, True, False),
        ({"MARCONI_CPU_MODE": "fast"}, False, False),
    ],
)
def test_modes(monkeypatch, usual_gc, variables, active, fast):
    from sglang_hooks import cpu_platform

    for name in ("SGLANG_PLATFORM", "MARCONI_CPU_MODE", "TRITON_INTERPRET", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cpu_platform.active() is active
    assert cpu_platform.fast_mode() is fast
    assert (cpu_platform.activate() is not None) is active
    assert (os.environ.get("TRITON_INTERPRET") == "1") is (active and not fast)


def test_unknown_mode_names_the_variable(monkeypatch):
    from sglang_hooks import cpu_platform

    monkeypatch.setenv("SGLANG_PLATFORM", "marconi_cpu")
    monkeypatch.setenv("MARCONI_CPU_MODE", "quick")
    with pytest.raises(ValueError, match="MARCONI_CPU_MODE must be one of fast, interpreter"):
        cpu_platform.activate()
