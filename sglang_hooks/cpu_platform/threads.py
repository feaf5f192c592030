"""Torch's threads: the cores shared out among the ranks.

Target: `sglang.srt.distributed.bootstrap._bind_threads_if_cpu` and `_init_cpu_threads_env`.
Why: upstream binds through a CPU build of sgl-kernel, and for two ranks wants a NUMA node each or a variable.
How: each rank takes an equal share of the cores that the process may use; OMP_NUM_THREADS wins if set.
Remove when: upstream binds threads only for its own CPU engine.
"""

import os

import torch


def apply() -> None:
    """Replace both functions; idempotent."""
    from sglang.srt.distributed import bootstrap

    bootstrap._bind_threads_if_cpu = lambda *, device: None
    bootstrap._init_cpu_threads_env = _share_out_cores


def _share_out_cores(*, local_omp_cpuid=None, dist_init_method=None) -> None:
    from sglang.srt.runtime_context import get_parallel

    if "OMP_NUM_THREADS" not in os.environ:
        parallel = get_parallel()
        ranks = parallel.dp_size * parallel.tp_size * parallel.pp_size
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))
