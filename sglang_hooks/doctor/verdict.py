"""What a server would do for a model, told from its configuration before anything is loaded: live, or stock and why.

The table of models decides (`recurrence.registry`). A server looks at its attention backend's class as well, which
differs on NPU and XPU alone.
"""

from __future__ import annotations

from typing import Any


def would_serve(model_config: Any) -> tuple[bool, str]:
    """(whether the extension would be live, why) under --enable-marconi. model_config: SGLang's ModelConfig."""
    from sglang.srt.configs.hybrid_arch import mambaish_config

    from ..recurrence.registry import family_named, why_stock

    model = model_config.hf_config.architectures[0]
    family = family_named(model)
    if family is None and mambaish_config(model_config) is None:
        return (
            False,
            f"{model} has no recurrent state, so there is nothing to save: SGLang's cache is exact for it",
        )
    refused = why_stock(model)
    if refused is not None:
        return False, f"{model}: {refused}"
    assert family is not None, "else it is served as stock"
    return True, f"{model}, recurrent states of kind {family.name}"
