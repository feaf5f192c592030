"""A draft model on the CPU: what drafts several tokens in a row (EAGLE, EAGLE3, MTP), the tree made of them, and what
drafts a block at once (DFLASH, DSPARK).

Target: the attention backend of the draft's decode steps and of its extends, where their KV lies, the draft's tree,
the copy of embeddings from the target's model, and the dtype of a block's embeddings.
Why: `torch_native` has no backend for several draft steps, and isn't on the list of those for a block; the rest is
compiled for accelerators, and the models and workers synchronise CUDA whatever the device.
How: one `torch_native` backend a step, which reads the branch's own tokens behind the prefix; torch twins.
Remove when: the operators come with a portable form.
"""

from functools import partial

import torch

from sglang_hooks.cpu_platform.attention import attend
from sglang_hooks.cpu_platform.rebind import rebind
from sglang_hooks.cpu_platform.speculation import OPS, reconstruct_tree


def apply() -> None:
    """Bind the torch operators; fast mode only. Without effect until a draft model is given."""
    setattr(torch.cuda, "synchronize", _nothing_to_wait_for)  # noqa: B010 - mypy takes it for a method
    setattr(torch.Tensor, "record_stream", _one_stream)  # noqa: B010 - as above
    rebind(f"{OPS}.cache_locs", "assign_draft_cache_locs_contiguous_func", draft_locations)
    rebind(f"{OPS}.spec_tree", "build_tree_kernel_efficient_func", build_tree)
    rebind(f"{OPS}.eagle", "fill_bonus_tokens_func", fill_bonus)
    rebind(f"{OPS}.gather_spec_extras", "gather_spec_extras", gather_rows)
    from sglang.srt.speculative import spec_utils

    compiled = spec_utils._select_top_k_tokens_later  # for whose compilation a server would wait
    plain = getattr(compiled, "_torchdynamo_orig_callable", compiled)
    rebind(spec_utils.__name__, "_select_top_k_tokens_later", plain)
    from sglang.srt.arg_groups import choices

    if "torch_native" not in choices.DRAFT_ATTENTION_BACKEND_CHOICES:  # for a block's draft
        choices.add_draft_attention_backend_choices(["torch_native"])
    from sglang.srt.speculative.draft_utils import DraftBackendFactory

    original = DraftBackendFactory._create_backend
    if not hasattr(original, "original"):
        _create_backend.original = original
        DraftBackendFactory._create_backend = _create_backend
    from sglang.srt.model_executor.model_runner import ModelRunner

    original = ModelRunner._extend_forward_kwargs
    if not hasattr(original, "original"):
        _extend_forward_kwargs.original = original
        ModelRunner._extend_forward_kwargs = _extend_forward_kwargs


def _nothing_to_wait_for(device=None):
    """In place of `torch.cuda.synchronize`, which raises where there is no GPU."""


def _one_stream(self, stream):
    """In place of `torch.Tensor.record_stream`, which a CPU's tensors lack: there is no other stream to guard from."""


def _extend_forward_kwargs(self, forward_batch, pp_proxy_tensors):
    """As stock, which turns given embeddings into bf16 whatever the model's dtype."""
    kwargs = _extend_forward_kwargs.original(self, forward_batch, pp_proxy_tensors)
    if forward_batch.input_embeds is not None and forward_batch.replace_embeds is None:
        kwargs["input_embeds"] = forward_batch.input_embeds.to(self.dtype)
    return kwargs


def draft_locations(
    req_pool_indices, req_to_token, seq_lens, out_cache_loc, topk, num_cols, positions=None, mrope=None
):
    """Each sequence's next `topk` · `num_cols` locations. Mutates out_cache_loc [N · topk · num_cols]."""
    columns = seq_lens.long()[:, None] + torch.arange(topk * num_cols, device=seq_lens.device)
    out_cache_loc.copy_(req_to_token[req_pool_indices.long()[:, None], columns].flatten())


def build_tree(
    parent_list,
    selected_index,
    seq_lens,
    tree_mask,
    positions,
    retrieve_index,
    retrieve_next_token,
    retrieve_next_sibling,
    topk,
    depth,
    nodes,
    mode,
):
    """The tree of a draft: a root and the `nodes` − 1 best candidates, each below the one that it was drafted from.

    selected_index: int[N, nodes − 1], candidates in the order of drafting, `topk` a parent; parent_list: the
    candidate that each group of `topk` was drafted from; seq_lens: int[N], tokens before the root.
    tree_mask: bool, a row of prefix and tree for each node, one sequence after the other. Mutates it, positions
    [N · nodes], retrieve_index, retrieve_next_token and retrieve_next_sibling [N, nodes].
    """
    count = len(seq_lens)
    ancestors = torch.zeros(count, nodes, nodes, dtype=torch.bool, device=seq_lens.device)
    for row, selected in enumerate(selected_index.tolist()):
        ancestors[row, 0, 0] = True
        for node, candidate in enumerate(selected, 1):
            group = candidate // topk
            parent = 0 if group == 0 else selected.index(int(parent_list[row, group])) + 1
            ancestors[row, node] = ancestors[row, parent]
            ancestors[row, node, node] = True
    at = 0
    for row, prefix in enumerate(seq_lens.tolist()):
        length = nodes * (prefix + nodes)
        tree_mask[at : at + length].view(nodes, prefix + nodes)[:, prefix:] = ancestors[row]
        at += length
    reconstruct_tree(
        ancestors.flatten(),
        seq_lens,
        positions,
        retrieve_index,
        retrieve_next_token,
        retrieve_next_sibling,
        count,
        nodes,
    )


def fill_bonus(accept_tokens, accept_lens, bonus_tokens, accept_stride, batch_size):
    """The last of each sequence's accepted tokens. accept_tokens: int[N, accept_stride]. Mutates bonus_tokens."""
    tokens = accept_tokens.view(batch_size, accept_stride)
    bonus_tokens.copy_(tokens.gather(1, accept_lens.long()[:, None] - 1).squeeze(1))


def gather_rows(indices, topk_p_buf, topk_index_buf, output_tokens_buf, hidden_states_buf):
    """What each request's last step left for its next draft, by its row: (p, tokens, bonus, states or None)."""
    buffers = (topk_p_buf, topk_index_buf, output_tokens_buf, hidden_states_buf)
    return tuple(None if buffer is None else buffer[indices.long()] for buffer in buffers)


def _create_backend(self, backend_name, backend_map, error_template, stamps_children=False):
    """As stock, which knows no `torch_native`."""
    runner, topk, steps = self.draft_model_runner, self.topk, self.speculative_num_steps

    def torch_native():
        from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

        if stamps_children:
            return "torch_native", DraftSteps(runner, topk, steps)
        return "torch_native", TorchNativeAttnBackend(runner)

    backend_map = {**backend_map, "torch_native": torch_native}
    return _create_backend.original(self, backend_name, backend_map, error_template, stamps_children)


class DraftSteps:
    """A backend for each decode step of a draft."""

    def __init__(self, runner, topk, steps):
        from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

        self.attn_backends = [TorchNativeAttnBackend(runner) for _ in range(steps - 1)]
        for step, backend in enumerate(self.attn_backends):
            backend._run_sdpa_forward_decode = partial(attend_step, step=step, topk=topk, steps=steps)

    def init_forward_metadata(self, forward_batch):
        """Each step's own; the batch is that of the first."""
        for backend in self.attn_backends:
            backend.init_forward_metadata(forward_batch)


def attend_step(
    query,
    output,
    k_cache,
    v_cache,
    req_to_token,
    req_pool_indices,
    seq_lens,
    encoder_lens=None,
    *,
    step,
    topk,
    steps,
    scaling,
    enable_gqa,
    **_unused,
):
    """Each branch's token of this step attends to the prefix and to its branch, itself included.

    query, output: [N · topk, heads, D]; k_cache, v_cache: [slots, kv heads, D]; a branch's tokens lie behind the
    prefix, `steps` locations each. Mutates and returns output.
    """
    lengths = zip(req_pool_indices.tolist(), seq_lens.tolist(), strict=True)
    for number, (row, prefix) in enumerate(lengths):
        for branch in range(topk):
            first, at = prefix + branch * steps, number * topk + branch
            slots = torch.cat([req_to_token[row, :prefix], req_to_token[row, first : first + step + 1]])
            output[at] = attend(
                query[at][:, None],
                k_cache[slots].transpose(0, 1).to(query.dtype),
                v_cache[slots].transpose(0, 1).to(query.dtype),
                prefix=len(slots) - 1,
                scale=scaling,
                gqa=enable_gqa,
            )[:, 0]
    return output
