"""What a server would do for a model, told from its configuration before anything is loaded: live, or stock and why.

The server itself decides by the attention backend that it has built (`radix.cache.why_stock`); here the kind of that
backend is read from the model's configuration, as SGLang chooses it.
"""

from __future__ import annotations

from typing import Any

MAMBA2, GDN, SHORT_CONV = "Mamba2", "Gated DeltaNet", "short convolutions"


def kind_of(model_config: Any) -> str | None:
    """The kind of recurrent state of a model; None: it has none. model_config: SGLang's ModelConfig."""
    from sglang.srt.configs import hybrid_arch as arch

    if arch.mambaish_config(model_config) is None:
        return None
    if arch.hybrid_gdn_config(model_config) is not None:
        return GDN
    found = arch.mamba2_config(model_config)
    if found is not None:
        return SHORT_CONV if type(found).__name__.startswith(("Lfm2", "Zaya")) else MAMBA2
    if arch.hybrid_kda_config(model_config) is not None:
        return "KDA"
    if arch.hybrid_lightning_config(model_config) is not None:
        return "lightning attention"
    return "another linear attention"


def live_kinds() -> frozenset[str]:
    """Kinds that are served with exact checkpoints."""
    from ..recurrence.registry import families

    return frozenset(family.name for family in families())


def would_serve(model_config: Any) -> tuple[bool, str]:
    """(whether the extension would be live, why) for a model under --enable-marconi."""
    model = model_config.hf_config.architectures[0]
    kind, live = kind_of(model_config), live_kinds()
    if kind is None:
        return (
            False,
            f"{model} has no recurrent state, so there is nothing to save: SGLang's cache is exact for it",
        )
    if kind not in live:
        return False, f"{model} has recurrent states of another kind ({kind}) than {', '.join(sorted(live))}"
    return True, f"{model}, recurrent states of kind {kind}"
