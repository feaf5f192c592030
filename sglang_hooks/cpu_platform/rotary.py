"""Rotary embeddings for models that name their device, or ask for its kernel.

Target: `get_rope_wrapper` of `sglang.srt.layers.rotary_embedding.factory`, and `RotaryEmbedding.forward_cuda`.
Why: told that the device is a CPU, the first offers DeepSeek's long-context variant alone; Bailing's latent attention
calls the second by name. How: the factory of all other devices, and the torch form. Remove when: SGLang asks neither.
"""

from sglang_hooks.cpu_platform.rebind import rebind

FACTORY = "sglang.srt.layers.rotary_embedding.factory"


def apply() -> None:
    """Rebind both; idempotent."""
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
    from sglang.srt.layers.rotary_embedding.factory import get_rope

    def get_rope_wrapper(*args, device=None, **kwargs):
        return get_rope(*args, **kwargs)

    rebind(FACTORY, "get_rope_wrapper", get_rope_wrapper)
    RotaryEmbedding.forward_cuda = RotaryEmbedding.forward_native
