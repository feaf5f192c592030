"""SGLang's host tier where the "device" is host memory as well.

Target: `sglang.srt.mem_cache.pool_host`: the host allocator, `MHATokenToKVPoolHost`,
`MLATokenToKVPoolHost` and `MambaPoolHost`.
Why: the pools are registered with the CUDA driver and moved by its kernels, imported only beside a GPU.
How: plain host tensors, also for pages read from storage, and index copies in place of the transfers (the layouts
stay as they are).
Remove when: the pools offer a torch transfer for devices without kernels.
"""

import torch

from sglang_hooks.cpu_platform.rebind import rebind


def apply() -> None:
    """Patch the host pools; idempotent, and without effect until --enable-hierarchical-cache is given."""
    from sglang.srt.mem_cache.pool_host import common, mamba, mha, mla

    common.ALLOC_MEMORY_FUNCS["cpu"] = _allocate
    rebind("sglang.srt.mem_cache.pool_host.common", "_cuda_host_unregister", lambda buffer: None)
    for pool in (mha.MHATokenToKVPoolHost, mla.MLATokenToKVPoolHost, mamba.MambaPoolHost):
        pool.get_dummy_flat_data_page = _unpinned(pool.get_dummy_flat_data_page)
    mha.MHATokenToKVPoolHost.load_to_device_per_layer = _load_kv
    mha.MHATokenToKVPoolHost.backup_from_device_all_layer = _back_up_kv
    mla.MLATokenToKVPoolHost.load_to_device_per_layer = _load_latent
    mla.MLATokenToKVPoolHost.backup_from_device_all_layer = _back_up_latent
    mamba.MambaPoolHost._copy_tensor = staticmethod(_copy_states)
    mamba.MambaPoolHost._copy_tensor_pf_lf = staticmethod(_load_states)
    mamba.MambaPoolHost._copy_tensor_all_layers_lf_pf = staticmethod(_back_up_states)


def _allocate(
    dims, dtype, device, pin_memory, allocator, registration_granularity_bytes=None
) -> torch.Tensor:
    return torch.empty(dims, dtype=dtype, device=device)


def _unpinned(original):
    """A page to read storage into, of plain memory: pinning raises without a GPU, and the prefetch is dropped."""
    if hasattr(original, "original"):
        return original

    def page(pool):
        pool.pin_memory = False
        return original(pool)

    page.original = original
    return page


def _load_kv(
    self, device_pool, host_indices, device_indices, layer_id, io_backend, *, is_draft=False
) -> None:
    """Host to device, one layer. `k_data_refs` are the host pool's views of a layer, [slots, heads, D]."""
    if is_draft or 0 <= layer_id < self.target_layer_num:
        self.device_k_buffers[layer_id][device_indices] = self.k_data_refs[layer_id][host_indices]
        self.device_v_buffers[layer_id][device_indices] = self.v_data_refs[layer_id][host_indices]


def _back_up_kv(self, device_pool, host_indices, device_indices, io_backend) -> None:
    """Device to host, all layers."""
    for layer_id in range(self.layer_num):
        self.k_data_refs[layer_id][host_indices] = self.device_k_buffers[layer_id][device_indices]
        self.v_data_refs[layer_id][host_indices] = self.device_v_buffers[layer_id][device_indices]


def _load_latent(
    self, device_pool, host_indices, device_indices, layer_id, io_backend, *, is_draft=False
) -> None:
    """Host to device, one layer. `data_refs` are the host pool's views of a layer, [slots, 1, latent + rotary]."""
    if is_draft or layer_id in self._target_layer_indices:
        device = self.device_kv_buffers[self._buffer_index_by_layer[layer_id]]
        device[device_indices] = self.data_refs[self._host_layer_by_controller[layer_id]][host_indices]


def _back_up_latent(self, device_pool, host_indices, device_indices, io_backend) -> None:
    """Device to host, all layers."""
    for layer_id, host_layer in self._host_layer_by_controller.items():
        device = self.device_kv_buffers[self._buffer_index_by_layer[layer_id]]
        self.data_refs[host_layer][host_indices] = device[device_indices]


def _copy_states(src, dst, src_indices, dst_indices, io_backend) -> None:
    """Rows of one layer to rows of one layer."""
    dst[dst_indices] = src[src_indices]


def _load_states(src, dst, src_indices, dst_indices, layer_id, num_layers, io_backend) -> None:
    """Host to device, one layer. src: [slots, layers, 1, *shape]; dst: [slots, *shape]."""
    dst[dst_indices] = src[src_indices, layer_id, 0]


def _back_up_states(
    src_layers,
    dst,
    src_indices,
    dst_indices,
    num_layers,
    io_backend,
    src_ptrs,
    staging=None,
    can_use_jit=False,
) -> None:
    """Device to host, all layers. src_layers: layers of [slots, *shape]; dst: [slots, layers, 1, *shape]."""
    for layer_id in range(num_layers):
        dst[dst_indices, layer_id, 0] = src_layers[layer_id][src_indices]
