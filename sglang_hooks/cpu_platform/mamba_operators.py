"""The operators behind SGLang's Mamba2 mixer on the CPU.

Target: `sglang.srt.layers.attention.mamba.mamba` (the mixer's module binds its causal convolution for CUDA,
NPU and XPU only), the chunk scan, the single-token update and the copy of tracked states.
Why: no convolution is bound elsewhere, and the Triton kernels need a GPU or the slow interpreter.
How: fast mode binds the torch twins of `marconi_kernels.torch_twins`; interpreter mode binds SGLang's own Triton
convolution. Remove when: SGLang binds the portable Triton convolution on out-of-tree platforms (interpreter
mode); the fast mode stays.
"""

from functools import partial

from marconi_kernels.mamba2.scan import mamba_chunk_scan_combined
from marconi_kernels.torch_twins import conv as torch_conv
from marconi_kernels.torch_twins import update as torch_update
from marconi_kernels.torch_twins.scan import TORCH_STAGES
from sglang_hooks.cpu_platform.rebind import rebind

MIXER = "sglang.srt.layers.attention.mamba.mamba"
OPS = "sglang.kernels.ops.mamba"


def apply_fast() -> None:
    """Bind the torch operators."""
    _bind_convolution(torch_conv.causal_conv1d_fn, torch_conv.causal_conv1d_update)
    rebind(f"{OPS}.causal_conv1d_triton", "causal_conv1d_fn", torch_conv.causal_conv1d_fn)
    rebind(f"{OPS}.causal_conv1d_triton", "causal_conv1d_update", torch_conv.causal_conv1d_update)
    rebind(
        f"{OPS}.triton_ops.ssd_combined",
        "mamba_chunk_scan_combined",
        partial(mamba_chunk_scan_combined, stages=TORCH_STAGES),
    )
    # The dispatcher fetches this one from its module when the scheduler starts.
    rebind(f"{OPS}.triton_ops.mamba_ssm", "selective_state_update", torch_update.selective_state_update)
    scatter = f"{OPS}.mamba_state_scatter_triton"
    rebind(scatter, "track_mamba_states_if_needed", torch_update.copy_tracked_states)
    rebind(scatter, "track_mamba_states_all_layers", torch_update.copy_tracked_states_all_layers)


def apply_interpreter() -> None:
    """Bind SGLang's Triton convolution."""
    from sglang.kernels.ops.mamba.causal_conv1d_triton import causal_conv1d_fn, causal_conv1d_update

    _bind_convolution(causal_conv1d_fn, causal_conv1d_update)


def _bind_convolution(forward, update) -> None:
    for suffix in ("", "_triton"):
        rebind(MIXER, f"causal_conv1d_fn{suffix}", forward)
        rebind(MIXER, f"causal_conv1d_update{suffix}", update)
