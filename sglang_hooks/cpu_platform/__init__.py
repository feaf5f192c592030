"""A platform that runs the unmodified SGLang engine on a CPU, for tests, demos and development.

Chosen by name only: `SGLANG_PLATFORM=marconi_cpu`. Otherwise `activate` declines and nothing here has any
effect, so a machine with a GPU is never taken over. `MARCONI_CPU_MODE` picks the operators: `fast` (default)
is vectorised torch, `interpreter` runs SGLang's Triton kernels under Triton's interpreter (slow; a check).
"""

import gc
import os
import sys

from sglang_hooks.serve_help import show_flags_in_help

PLATFORM = "marconi_cpu"
MODES = ("fast", "interpreter")
IMPORTING_GC_THRESHOLD = 500_000  # nothing that modules create while they load is garbage

_GC_THRESHOLDS = gc.get_threshold()
_applied = False


def active() -> bool:
    """Whether this process was started for the CPU platform."""
    return os.environ.get("SGLANG_PLATFORM") == PLATFORM


def mode() -> str:
    """`fast` or `interpreter`. Raises: ValueError naming MARCONI_CPU_MODE for anything else."""
    chosen = os.environ.get("MARCONI_CPU_MODE") or "fast"
    if chosen not in MODES:
        raise ValueError(f"MARCONI_CPU_MODE must be one of {', '.join(MODES)}; got {chosen!r}")
    return chosen


def fast_mode() -> bool:
    """Whether the engine computes with the torch operators of `marconi_kernels.torch_twins`."""
    return active() and mode() == "fast"


def activate() -> str | None:
    """Entry point `sglang.srt.platforms`: the platform's class by name, or None when not asked for.

    SGLang calls it before anything else of ours, whatever the platform, so that help can be told of our flags.
    """
    show_flags_in_help(sys.argv)
    if not active():
        return None
    if mode() == "interpreter":
        # Read when a kernel is decorated, so it has to stand before SGLang imports its kernels.
        os.environ["TRITON_INTERPRET"] = "1"
    # OpenMP's idle threads sleep rather than spin: spinning is slightly faster on idle cores, and several
    # times slower once anything else wants one (the tokenizer, another rank). It is read when OpenMP loads,
    # so this reaches the processes started from here, which are those that compute.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # SGLang asks for its platform early in its import, most of which is still to come. Looking for garbage
    # costs a quarter of an import; `apply` ends this.
    gc.set_threshold(IMPORTING_GC_THRESHOLD)
    return "sglang_hooks.cpu_platform.platform.MarconiCpuPlatform"


def apply() -> bool:
    """Apply the patches that the CPU platform needs; idempotent, a no-op unless it is active.

    Called in every SGLang process by the general plugin. Returns whether the platform is active.
    """
    global _applied
    if not active():
        return False
    if not _applied:
        from sglang_hooks.cpu_platform import patches

        patches.apply_all(fast=fast_mode())
        gc.set_threshold(*_GC_THRESHOLDS)
        _applied = True
    return True
