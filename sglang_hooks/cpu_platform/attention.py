"""Prefill attention that computes only the new tokens' rows.

Target: `sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend._run_sdpa_forward_extend`.
Why: it computes a row for every cached token too and throws those away, so a prompt with 3,000 cached and 50
new tokens costs nearly as much as 3,050 new ones, and no cache could show its worth in time.
How: the new rows only, in blocks with the matching slice of the causal mask; the same bits as the original.
Anything but plain causal self-attention goes to the original.
Remove when: the upstream backend skips the cached rows.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention

ROW_BLOCK = 256  # rows that share one mask [rows, keys]: small masks, and half the work of a full square


def apply() -> None:
    """Replace the method; idempotent."""
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

    original = TorchNativeAttnBackend._run_sdpa_forward_extend
    if not hasattr(original, "original"):
        _extend.original = original
        TorchNativeAttnBackend._run_sdpa_forward_extend = _extend


def _extend(
    self,
    query,
    output,
    k_cache,
    v_cache,
    req_to_token,
    req_pool_indices,
    seq_lens,
    extend_prefix_lens,
    extend_seq_lens,
    encoder_lens=None,
    scaling=None,
    enable_gqa=False,
    causal=False,
    is_cross_attn=False,
    sliding_window_size=None,
):
    """query, output: [T, heads, D], all requests' new tokens; k_cache, v_cache: [slots, kv heads, D]."""
    windowed = sliding_window_size is not None and sliding_window_size > -1
    if not causal or is_cross_attn or encoder_lens is not None or windowed:
        return _extend.original(
            self,
            query,
            output,
            k_cache,
            v_cache,
            req_to_token,
            req_pool_indices,
            seq_lens,
            extend_prefix_lens,
            extend_seq_lens,
            encoder_lens,
            scaling=scaling,
            enable_gqa=enable_gqa,
            causal=causal,
            is_cross_attn=is_cross_attn,
            sliding_window_size=sliding_window_size,
        )
    start = 0
    lengths = zip(
        req_pool_indices.tolist(),
        seq_lens.tolist(),
        extend_prefix_lens.tolist(),
        extend_seq_lens.tolist(),
        strict=True,
    )
    for request, total, prefix, new in lengths:
        slots = req_to_token[request, :total]
        rows = attend(
            query[start : start + new].transpose(0, 1),
            k_cache[slots].transpose(0, 1).to(query.dtype),
            v_cache[slots].transpose(0, 1).to(query.dtype),
            prefix=prefix,
            scale=scaling,
            gqa=enable_gqa,
        )
        output[start : start + new] = rows.transpose(0, 1)
        start += new
    return output


def attend(query, key, value, *, prefix: int, scale: float | None, gqa: bool) -> torch.Tensor:
    """Causal attention of the rows after `prefix`. query: [h, new, D]; key, value: [kv, prefix + new, D]."""
    query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
    if prefix == 0:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=gqa)[0]
    new = query.shape[2]
    blocks = []
    for start in range(0, new, ROW_BLOCK):
        stop = min(start + ROW_BLOCK, new)
        seen = prefix + stop
        mask = torch.ones(stop - start, seen, dtype=torch.bool, device=query.device).tril(prefix + start)
        blocks.append(
            scaled_dot_product_attention(
                query[:, :, start:stop],
                key[:, :, :seen],
                value[:, :, :seen],
                attn_mask=mask,
                scale=scale,
                enable_gqa=gqa,
            )[0]
        )
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
