"""The platform class: answers SGLang's questions about the device for plain CPU tensors."""

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform

from sglang_hooks.cpu_platform import fast_mode
from sglang_hooks.cpu_platform.allocator import keep_freed_memory


class MarconiCpuPlatform(CpuDeviceMixin, SRTPlatform):
    """CPU tensors under SGLang's device-neutral code paths.

    Out-of-tree rather than SGLang's own CPU engine: that one wants a CPU build of sgl-kernel, and turns
    features such as overlap scheduling off.
    """

    _enum = PlatformEnum.OOT
    device_name = "marconi_cpu"
    device_type = "cpu"
    capabilities = PlatformCapabilities()  # no Triton, no graphs: core picks its torch-native paths

    def get_default_attention_backend(self) -> str:
        return "torch_native"

    def support_mamba_cache_extra_buffer(self) -> bool:
        return True

    def supports_speculative_algorithm(self, algorithm: str) -> bool:
        return fast_mode()

    def supports_speculative_draft_attention_backend(self, algorithm: str, backend: str) -> bool:
        return fast_mode() and backend == self.get_default_attention_backend()

    def get_default_speculative_draft_attention_backend(self, algorithm: str) -> str:
        return self.get_default_attention_backend()

    def get_speculative_cache_locs_fn(self):
        from sglang_hooks.cpu_platform.speculation import extend_locations

        return extend_locations

    def get_compile_backend(self, mode: str | None = None) -> str:
        return "eager"

    def is_pin_memory_available(self, device=None) -> bool:
        return False

    def post_load_model(self, model) -> None:
        keep_freed_memory()  # here, because only the process that computes loads a model

    def get_torch_profiler_activity_str(self) -> str:
        return "CPU"

    def get_torch_profiler_activity(self):
        import torch

        return torch.profiler.ProfilerActivity.CPU
