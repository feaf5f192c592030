"""The patches of the CPU platform in the order in which they are applied."""

from sglang_hooks.cpu_platform import (
    adapters,
    attention,
    delta_operators,
    device_module,
    disaggregation,
    draft,
    hierarchical_cache,
    host_memory,
    latent_attention,
    lightning_operators,
    mamba_operators,
    parallel_attention,
    rotary,
    speculation,
    threads,
    triton_interpreter,
)


def apply_all(*, fast: bool) -> None:
    """Apply every patch for the mode. Raises: RuntimeError if kernels were compiled for a GPU already."""
    host_memory.apply()
    threads.apply()
    device_module.apply()
    hierarchical_cache.apply()
    disaggregation.apply()
    latent_attention.apply()
    parallel_attention.apply()
    rotary.apply()
    adapters.apply()
    if fast:
        attention.apply()
        mamba_operators.apply_fast()
        delta_operators.apply()
        lightning_operators.apply()
        speculation.apply()
        draft.apply()
    else:
        triton_interpreter.apply()
        mamba_operators.apply_interpreter()
