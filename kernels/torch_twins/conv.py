"""Depthwise causal convolution with cached windows, in vectorised torch.

Twins of SGLang's Triton `causal_conv1d_fn` and `causal_conv1d_update` (0.5.23), for machines without a GPU.
The pool keeps each sequence's last K - 1 inputs, `conv_states` [slots, dim, K - 1], oldest first.
"""

import torch
import torch.nn.functional as F

PAD_SLOT_ID = -1
STEP_ELEMENTS = 1 << 16


def causal_conv1d_fn(
    x,
    weight,
    bias=None,
    conv_states=None,
    query_start_loc=None,
    seq_lens_cpu=None,
    cache_indices=None,
    has_initial_state=None,
    activation="silu",
    pad_slot_id=PAD_SLOT_ID,
    **unused,
):
    """Convolve a ragged batch.

    x: [dim, T], sequences side by side; weight: [dim, K]; bias: [dim] or None; query_start_loc: int[N + 1];
    seq_lens_cpu: N lengths (read from query_start_loc if absent); cache_indices: int[N] slots, `pad_slot_id`
    skips a sequence; has_initial_state: bool[N], whether to start from the slot's window or from zeros.
    Returns [dim, T]. Mutates conv_states: each sequence's slot gets its last K - 1 inputs.
    """
    if seq_lens_cpu is None:
        seq_lens_cpu = query_start_loc.diff().tolist() if query_start_loc is not None else [x.shape[1]]
    window = weight.shape[1] - 1
    slots = _rows(cache_indices, len(seq_lens_cpu))
    starts_warm = has_initial_state.tolist() if has_initial_state is not None else [False] * len(slots)

    tokens = x.transpose(0, 1)  # [T, dim]
    zeros = tokens.new_zeros(window, x.shape[0])
    pieces, spans, at, row = [], [], 0, 0
    for length, slot, warm in zip(seq_lens_cpu, slots, starts_warm, strict=True):
        warm = warm and conv_states is not None and slot != pad_slot_id
        pieces.append(conv_states[slot, :, :window].transpose(0, 1).to(x.dtype) if warm else zeros)
        pieces.append(tokens[at : at + length])
        spans.append((row, length))
        at += length
        row += window + length
    padded = torch.cat(pieces)  # every sequence behind its own window: no token sees another sequence
    if conv_states is not None:
        for slot, (row, length) in zip(slots, spans, strict=True):
            if slot != pad_slot_id:
                conv_states[slot, :, :window] = padded[row + length : row + length + window].transpose(0, 1)

    out = _depthwise(padded, weight, bias)
    if len(spans) > 1:
        out = torch.cat([out[row : row + length] for row, length in spans])
    return _activate(out, activation).to(x.dtype).transpose(0, 1)


def causal_conv1d_update(
    x,
    conv_state,
    weight,
    bias=None,
    activation=None,
    cache_seqlens=None,
    conv_state_indices=None,
    pad_slot_id=PAD_SLOT_ID,
    **unsupported,
):
    """Convolve one new token for each sequence; with intermediate_conv_window, a tree of tokens: `verify_windows`.

    x: [N, dim] or [N, dim, 1]; conv_state_indices: int[N] slots, `pad_slot_id` skips a row.
    Returns x's shape. Mutates conv_state: the window of each slot moves on by one token.
    Raises: NotImplementedError for circular buffers and for several tokens whose windows aren't kept.
    """
    if unsupported.get("intermediate_conv_window") is not None:
        return verify_windows(x, conv_state, weight, bias, activation, conv_state_indices, **unsupported)
    extra = [name for name, value in unsupported.items() if value is not None and name != "validate_data"]
    if cache_seqlens is not None or extra or (x.dim() == 3 and x.shape[2] != 1):
        raise NotImplementedError(f"the torch convolution takes one token a step; got {extra or 'more'}")
    column = x if x.dim() == 3 else x.unsqueeze(-1)
    window = weight.shape[1] - 1
    if conv_state_indices is None:
        slots = torch.arange(x.shape[0], device=x.device)
    else:
        slots = conv_state_indices.long()
    states = conv_state[slots.clamp(min=0), :, :window]
    full = torch.cat([states.to(x.dtype), column], dim=2)  # [N, dim, K]
    kept = full[:, :, 1:].to(conv_state.dtype)
    # Padding rows write their window back to slot 0 unchanged: no data-dependent shapes on the decode path.
    real = slots != pad_slot_id
    if not bool(real.all()):
        slots, kept = slots[real], kept[real]
    conv_state[slots, :, :window] = kept
    out = (full.float() * weight.float()).sum(dim=2)
    if bias is not None:
        out = out + bias.float()
    out = _activate(out, activation).to(x.dtype)
    return out.unsqueeze(-1) if x.dim() == 3 else out


def verify_windows(
    x,
    conv_state,
    weight,
    bias,
    activation,
    conv_state_indices,
    *,
    intermediate_conv_window,
    intermediate_state_indices=None,
    retrieve_next_token=None,
    retrieve_next_sibling=None,
    retrieve_parent_token=None,
    **_unused,
):
    """Convolve N trees of T draft tokens and keep the window after every token.

    x: [N, dim, T]; conv_state_indices: int[N]; intermediate_conv_window: [rows, T, dim, K - 1], written at
    `intermediate_state_indices` int[N]; retrieve_next_token, retrieve_next_sibling: int[N, T], a node's first child
    and its next sibling, -1 for none; without them the tokens are a chain. Returns [N, dim, T].
    Mutates intermediate_conv_window, retrieve_parent_token (int[N, T], 0 at the root) and, as the Triton kernel,
    conv_state: it holds the last inputs of the row, whatever is accepted, until the accepted window is put back.
    """
    count, _, steps = x.shape
    window = weight.shape[1] - 1
    slots = conv_state_indices.long()
    real = slots >= 0
    states = conv_state[slots.clamp(min=0), :, :window].to(x.dtype)
    inputs = torch.cat([states, x], dim=2)  # [N, dim, K - 1 + T]
    if retrieve_next_token is None:
        parents = torch.arange(-1, steps - 1, device=x.device).clamp_(min=0).expand(count, -1)
    else:
        parents = tree_parents(retrieve_next_token, retrieve_next_sibling)
        retrieve_parent_token.copy_(parents)
    taps = torch.empty(
        count, steps, window + 1, dtype=torch.int64, device=x.device
    )  # inputs that a token reads
    taps[:, 0] = torch.arange(window, -1, -1, device=x.device)  # itself, its parent, its parent's parent, ...
    rows = torch.arange(count, device=x.device)
    for step in range(1, steps):
        taps[:, step, 0] = window + step
        taps[:, step, 1:] = taps[rows, parents[:, step], :window]
    taps = taps.flip(2)  # oldest first
    read = inputs.gather(2, taps.flatten(1)[:, None].expand(-1, x.shape[1], -1)).unflatten(2, (steps, -1))
    kept = rows if intermediate_state_indices is None else intermediate_state_indices.long()
    for step in range(steps):  # one at a time: the windows of a chain may share memory
        intermediate_conv_window[kept, step] = read[:, :, step, 1:].to(intermediate_conv_window.dtype)
    conv_state[slots[real], :, :window] = inputs[real][:, :, -window:].to(conv_state.dtype)
    out = (read.float() * weight.float()[:, None]).sum(dim=3)
    if bias is not None:
        out = out + bias.float()[:, None]
    out = _activate(out, activation).to(x.dtype)
    return out.transpose(1, 2).contiguous().transpose(1, 2)  # as x lies in memory


def tree_parents(next_token, next_sibling):
    """A node's parent, from first children and next siblings. int[N, T] each; the root's is 0. Parents come first."""
    parents = torch.zeros_like(next_token, dtype=torch.int64)
    rows = torch.arange(next_token.shape[0], device=next_token.device)
    for node in range(next_token.shape[1]):
        for link, parent in ((next_token[:, node], node), (next_sibling[:, node], parents[:, node])):
            there = link >= 0
            parents[rows[there], link[there].long()] = parent if isinstance(parent, int) else parent[there]
    return parents


def _depthwise(padded, weight, bias):
    """padded: [T + K - 1, dim] -> [T, dim], fp32; tap j of the kernel reads the token K - 1 - j back."""
    taps = weight.float().transpose(0, 1).contiguous()  # [K, dim]
    length = padded.shape[0] - taps.shape[0] + 1
    out = torch.empty(length, padded.shape[1], dtype=torch.float32, device=padded.device)
    step = max(64, STEP_ELEMENTS // padded.shape[1])  # a step's rows stay in cache from tap to tap
    for start in range(0, length, step):
        part = out[start : start + step]
        rows = padded[start : start + len(part) + taps.shape[0] - 1].float()
        torch.mul(rows[: len(part)], taps[0], out=part)
        for tap in range(1, taps.shape[0]):
            part.addcmul_(rows[tap : tap + len(part)], taps[tap])
        if bias is not None:
            part.add_(bias.float())
    return out


def _activate(out, activation):
    if activation in ("silu", "swish", True):
        return F.silu(out, inplace=True)
    if activation in (None, False):
        return out
    raise ValueError(f"activation must be silu, swish or None, got {activation!r}")


def _rows(cache_indices, count):
    return list(range(count)) if cache_indices is None else cache_indices[:count].tolist()
