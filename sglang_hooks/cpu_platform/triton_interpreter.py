"""Run SGLang's Triton kernels under Triton's interpreter."""

import triton
from triton.runtime.autotuner import Autotuner


def apply() -> None:
    """Pin the autotuner.

    Target: `triton.runtime.autotuner.Autotuner.run`. Why: it times configurations on a GPU; under the
    interpreter they only differ in tile sizes. How: run the first configuration left after pruning.
    Remove when: Triton skips tuning under TRITON_INTERPRET itself.
    """
    if not triton.knobs.runtime.interpret:
        raise RuntimeError("MARCONI_CPU_MODE=interpreter needs TRITON_INTERPRET=1 in the environment")
    Autotuner.run = _run_first_config


def _run_first_config(self, *args, **kwargs):
    self.nargs = dict(zip(self.arg_names, args, strict=False))
    config = self.prune_configs(kwargs)[0]
    try:
        return self.fn.run(*args, **kwargs, **config.all_kwargs())
    finally:
        self.nargs = None
