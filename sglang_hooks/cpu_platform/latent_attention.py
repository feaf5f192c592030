"""Multi-head latent attention (Kimi Linear, Bailing) on the CPU's attention backend.

Target: `AttentionBackendRegistry` of SGLang's DeepSeek attention. Why: an attention backend that it doesn't know is
handed full keys and values, but `torch_native` reads its keys from the pool, where the latents lie. How: ask for the
absorbed form, whose keys are the latents. Remove when: SGLang registers `torch_native` itself.
"""


def apply() -> None:
    """Register the handler; idempotent."""
    from sglang.srt.models.deepseek_common import attention_backend_handler as handlers

    def absorbed(_attention, _forward_batch):
        return handlers.AttnForwardMethod.MLA

    handlers.AttentionBackendRegistry.register("torch_native", absorbed)
