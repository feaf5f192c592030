"""A prefill server that sends KV and states out of host memory.

Target: `sglang.srt.disaggregation.utils.get_kv_class` and SGLANG_DISAGG_PREFILL_EARLY_SEND_CACHED_PREFIX.
Why: a sender of Mooncake's gets its indices in pinned memory behind a CUDA event, and a cached prefix that is sent
early waits for another; both raise without a GPU.
How: senders take plain indices, and a cached prefix is sent with the rest.
Remove when: SGLang asks whether there are streams.
"""

from __future__ import annotations

import os
from typing import Any

from sglang_hooks.cpu_platform.rebind import rebind


def apply() -> None:
    """Replace the function; idempotent, and without effect on a server that doesn't send."""
    from sglang.srt.disaggregation import utils

    os.environ.setdefault("SGLANG_DISAGG_PREFILL_EARLY_SEND_CACHED_PREFIX", "0")
    original = utils.get_kv_class
    if hasattr(original, "original"):
        return

    def get_kv_class(transfer_backend: Any, class_type: Any) -> Any:
        found = original(transfer_backend, class_type)
        if class_type == utils.KVClassType.SENDER:
            found.supports_host_tensor_indices = False
        return found

    get_kv_class.original = original
    rebind("sglang.srt.disaggregation.utils", "get_kv_class", get_kv_class)
