"""Speculative decoding on the CPU: what verifies a tree of draft tokens.

Target: the tree's reconstruction and greedy verification, where the tokens' KV lies, attention under the tree's mask,
the convolution, the state updates and the commit of accepted states.
Why: all are compiled for accelerators or for SGLang's own CPU engine; and SGLang turns overlap scheduling off for
speculation on a CPU, which executes in order and therefore shows what a state is at each moment. For DSPARK it wants
a device of a certain name.
How: torch twins, here and in `marconi_kernels.torch_twins`; one token or several, they share their arithmetic.
A verify takes the likeliest token whatever the temperature, as in SGLang's own CPU engine.
As on a GPU the convolution's window of the running slot is overwritten by a verify, and put back by its commit.
Remove when: the operators come with a portable form.
"""

import importlib
import sys
import types

import torch
from torch.nn.functional import scaled_dot_product_attention

from marconi_kernels.torch_twins import delta_verify
from sglang_hooks.cpu_platform.rebind import rebind

OPS = "sglang.kernels.ops.speculative"


def apply() -> None:
    """Bind the torch operators; fast mode only. Without effect until --speculative-algorithm is given."""
    _kernel_module()
    rebind(
        "sglang.srt.arg_groups.speculative_hook",
        "_disable_overlap_schedule_for_cpu",
        lambda server_args: None,
    )
    hook = importlib.import_module("sglang.srt.arg_groups.speculative_hook")
    if not hasattr(hook._handle_dspark, "original"):
        _handle_dspark.original = hook._handle_dspark
        rebind(hook.__name__, "_handle_dspark", _handle_dspark)
    rebind(f"{OPS}.reconstruct_tree", "reconstruct_indices_from_tree_mask_func", reconstruct_tree)
    rebind(f"{OPS}.spec_tree", "verify_tree_greedy_func", verify_tree_greedy)
    # as SGLang's own CPU engine: the kernel that verifies by sampling is for GPUs alone
    rebind("sglang.srt.speculative.eagle_utils", "_verify_uses_greedy", lambda **_situation: True)
    rebind("sglang.srt.speculative.dflash_utils", "is_dflash_sampling_verify_available", lambda: False)
    rebind(f"{OPS}.cache_locs", "fill_front_out_cache_loc_func", fill_front)
    rebind(f"{OPS}.eagle", "fill_accept_out_cache_loc_func", fill_accepted)
    rebind("sglang.srt.mem_cache.allocation", "assign_req_to_token_pool_func", assign_rows)
    scatter = "sglang.kernels.ops.mamba.mamba_state_scatter_triton"
    rebind(scatter, "fused_mamba_state_scatter_with_mask", put_back)
    rebind(scatter, "fused_conv_window_scatter_with_mask", put_back)
    rebind(scatter, "_conv_multi_eligible", lambda pairs: False)
    rebind(
        "sglang.kernels.ops.attention.linear.fused_sigmoid_gating_recurrent",
        "fused_sigmoid_gating_delta_rule_update",
        delta_verify.fused_sigmoid_gating_delta_rule_update,
    )
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
    from sglang.srt.mem_cache import memory_pool

    memory_pool.MHATokenToKVPool._init_kv_copy_and_warmup = lambda self: setattr(
        self, "_kv_copy_config", None
    )
    memory_pool.MHATokenToKVPool._move_kv_cache_impl = _move_kv
    original = TorchNativeAttnBackend.forward_extend
    if not hasattr(original, "original"):
        _forward_extend.original = original
        TorchNativeAttnBackend.forward_extend = _forward_extend


def _kernel_module() -> None:
    """`sgl_kernel.speculative` exists for GPUs alone, and SGLang imports a name from it when it is none of the known
    devices; the name is replaced before it is called."""
    try:
        importlib.import_module("sgl_kernel.speculative")
    except (ImportError, OSError):
        module = types.ModuleType("sgl_kernel.speculative")
        module.reconstruct_indices_from_tree_mask = reconstruct_tree
        sys.modules["sgl_kernel.speculative"] = module


def _handle_dspark(server_args):
    """As stock, which asks for the device's name, and not the platform as with every other algorithm."""
    hook = importlib.import_module("sglang.srt.arg_groups.speculative_hook")
    view = hook.resolving_view
    hook.resolving_view = lambda arguments: _AsOnGpu(view(arguments))
    try:
        _handle_dspark.original(server_args)
    finally:
        hook.resolving_view = view


class _AsOnGpu:
    """Arguments whose device is a GPU's."""

    device = "cuda"

    def __init__(self, arguments):
        self._arguments = arguments

    def __getattr__(self, name):
        return getattr(self._arguments, name)


def reconstruct_tree(
    tree_mask,
    verified_seq_len,
    positions,
    retrieve_index,
    retrieve_next_token,
    retrieve_next_sibling,
    count,
    nodes,
):
    """The tree of each of `count` sequences from its mask of ancestors.

    tree_mask: bool[count · nodes · nodes], (i, j) = j is an ancestor of i, or i itself; verified_seq_len: int[count].
    Mutates positions [count · nodes], retrieve_index, retrieve_next_token and retrieve_next_sibling [count, nodes].
    """
    order = torch.arange(nodes, device=tree_mask.device)
    ancestors = tree_mask.view(count, nodes, nodes) & (order < order[:, None])
    positions.copy_((ancestors.sum(2) + verified_seq_len[:, None]).flatten())
    retrieve_index.copy_(torch.arange(count * nodes, device=order.device).view(count, nodes))
    parents = torch.where(ancestors, order, -1).amax(2)  # [count, nodes]
    child = ancestors.transpose(1, 2)  # (j, i): i is below j
    retrieve_next_token.copy_(_first(child))
    sibling = (
        (parents[:, :, None] == parents[:, None]) & (order > order[:, None]) & (parents >= 0)[:, :, None]
    )
    retrieve_next_sibling.copy_(_first(sibling))


def _first(mask):
    """Index of the first True in the last dimension, -1 for none."""
    return torch.where(mask.any(2), mask.int().argmax(2), -1)


def verify_tree_greedy(
    predicts,
    accept_index,
    accept_token_num,
    candidates,
    retrieve_index,
    retrieve_next_token,
    retrieve_next_sibling,
    target_predict,
    topk=-1,
):
    """Follow the children that are what the target chose. All int[N, T]; accept_index [N, depth], -1 where nothing is.
    Mutates and returns predicts [N · T], accept_index and accept_token_num [N], the drafts accepted."""
    lists = (x.tolist() for x in (candidates, retrieve_index, retrieve_next_token, retrieve_next_sibling))
    targets = target_predict.flatten().tolist()
    for row, (tokens, index, child, sibling) in enumerate(zip(*lists, strict=True)):
        node, accepted = 0, [index[0]]
        while len(accepted) < accept_index.shape[1]:
            node = child[node]
            while node != -1 and tokens[node] != targets[accepted[-1]]:
                node = sibling[node]
            if node == -1:
                break
            accepted.append(index[node])
        for number, at in enumerate(accepted):
            accept_index[row, number], predicts[at] = at, targets[at]
        accept_token_num[row] = len(accepted) - 1
    return predicts, accept_index, accept_token_num


def extend_locations(*, req_pool_indices, req_to_token, start_offset, draft_token_num, **_unused):
    """Where the next `draft_token_num` tokens of each sequence lie. Returns int64[N · draft_token_num]."""
    columns = start_offset.long()[:, None] + torch.arange(draft_token_num, device=start_offset.device)
    return req_to_token[req_pool_indices.long()[:, None], columns].long().flatten()


def fill_front(num_front, out_cache_loc, front_out_cache_loc):
    """The first num_front[i] locations of row i, one row after the other."""
    window = out_cache_loc.view(len(num_front), -1)
    front = window[torch.arange(window.shape[1], device=window.device) < num_front[:, None]]
    front_out_cache_loc[: len(front)] = front


def fill_accepted(accept_index, out_cache_loc, accept_out_cache_loc, size):
    """The locations of the accepted tokens, one row after the other."""
    accepted = out_cache_loc[accept_index[accept_index >= 0].long()]
    accept_out_cache_loc[: len(accepted)] = accepted


def assign_rows(req_pool_indices, req_to_token, start_offset, end_offset, out_cache_loc, batch_size):
    """Write each sequence's new locations into its row, from start to end."""
    at = 0
    spans = zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True)
    for row, start, end in spans:
        req_to_token[row, start:end] = out_cache_loc[at : at + end - start]
        at += end - start


def put_back(dst, src, dst_indices_raw, step_indices_raw, src_indices_raw=None):
    """dst[:, slot i] = src[:, i, step i] where step i is none below 0. dst: [layers, slots, …];
    src: [layers, rows, steps, …]; the rest int[N]. Mutates dst."""
    if dst.numel() == 0:
        return
    chosen = step_indices_raw >= 0
    rows = torch.arange(len(chosen), device=dst.device) if src_indices_raw is None else src_indices_raw.long()
    slots = dst_indices_raw[: len(chosen)][chosen].long()
    dst[:, slots] = src[:, rows[chosen], step_indices_raw[chosen].long()].to(dst.dtype)


def _move_kv(self, tgt_loc, src_loc):
    from sglang.srt.mem_cache.memory_pool import move_kv_cache_native

    move_kv_cache_native(self.k_buffer, self.v_buffer, tgt_loc, src_loc)


def _forward_extend(self, q, k, v, layer, forward_batch, save_kv_cache=True, **more):
    """As stock; a verify attends to the cached prefix and, in its own tokens, to what the mask shows."""
    if not forward_batch.forward_mode.is_target_verify():
        return _forward_extend.original(self, q, k, v, layer, forward_batch, save_kv_cache, **more)
    from sglang.srt.layers.radix_attention import AttentionType
    from sglang.srt.mem_cache.memory_pool import KVWriteLoc

    pool, spec = self.token_to_kv_pool, forward_batch.spec_info
    if save_kv_cache and k is not None:
        pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, self.swa_out_cache_loc), k, v)
    keys, values = pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)
    count, nodes = forward_batch.batch_size, spec.draft_token_num
    queries = q.view(count, nodes, layer.tp_q_head_num, layer.qk_head_dim).transpose(1, 2)
    own = forward_batch.out_cache_loc.view(count, nodes)
    rows = zip(forward_batch.req_pool_indices.tolist(), forward_batch.seq_lens.tolist(), strict=True)
    out, at = [], 0
    for number, (row, prefix) in enumerate(rows):
        slots = torch.cat([self.req_to_token_pool.req_to_token[row, :prefix].long(), own[number].long()])
        length = nodes * (prefix + nodes)
        if spec.custom_mask is None:
            mask = torch.ones(nodes, prefix + nodes, dtype=torch.bool, device=q.device)
            if layer.attn_type != AttentionType.ENCODER_ONLY:  # else a block, drafted at once
                mask = mask.tril(prefix)
        else:
            mask = spec.custom_mask[at : at + length].view(nodes, prefix + nodes)
        at += length
        out.append(
            scaled_dot_product_attention(
                queries[number : number + 1],
                keys[slots].transpose(0, 1).unsqueeze(0).to(q.dtype),
                values[slots].transpose(0, 1).unsqueeze(0).to(q.dtype),
                attn_mask=mask,
                scale=layer.scaling,
                enable_gqa=layer.tp_q_head_num != layer.tp_k_head_num,
            )
        )
    return torch.cat(out).transpose(1, 2).reshape(count * nodes, -1)
