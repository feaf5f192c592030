"""The default device's module is that of the CPU.

Target: `torch.get_device_module`, called without a device.
Why: a torch that was built for CUDA answers torch.cuda on a machine without a GPU, and SGLang's
`release_memory_occupation` then ends the server as it synchronises.
How: without a device, `torch.cpu`; with one, as torch answers.
Remove when: SGLang asks its platform for the module.
"""

from __future__ import annotations

from types import ModuleType

import torch


def apply() -> None:
    """Replace the function; idempotent."""
    original = torch.get_device_module
    if getattr(original, "is_marconi", False):
        return

    def get_device_module(device: torch.device | str | None = None) -> ModuleType:
        return torch.cpu if device is None else original(device)

    get_device_module.is_marconi = True
    torch.get_device_module = get_device_module
