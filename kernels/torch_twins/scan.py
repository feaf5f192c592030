"""Mamba2's chunk scan in vectorised torch: the stages of SGLang's Triton pipeline, one function each.

Same signatures, shapes and intermediates as the launchers in SGLang's `ssd_*` modules (0.5.23), so that
either set can stand behind `marconi_kernels.mamba2.scan`; here they are `TORCH_STAGES`. Arithmetic is all fp32
and differs from the Triton kernels by the order of sums only. Batch size 1 (varlen) is what the engine uses;
larger batches work wherever the kernels accept them.

T tokens are cut into ceil(T / Q) chunks of Q on one grid over the flattened batch; `seq_idx` int32[1, T] says
which sequence a token belongs to. Symbols: h heads, g groups, p head dimension, n state size, c chunks.
"""

import torch
import torch.nn.functional as F

from marconi_kernels.mamba2.scan import ScanStages

# Elements of x that one step works on: what a step touches should stay in a core's cache.
STEP_ELEMENTS = 1 << 17
# Rows of a chunk that share a reference point for their decays, and how far (in e-foldings) one such block
# may decay before exp(-decay) gets near the end of fp32's range.
ROW_BLOCK = 64
MAX_LOG_RANGE = 60.0


def chunk_cumsum(dt, A, chunk_size, dt_bias=None, dt_softplus=False, dt_limit=(0.0, float("inf"))):
    """Step sizes and the running sum of A · dt inside each chunk.

    dt: [b, T, h]; A: [h]; dt_bias: [h] or None.
    Returns dA_cumsum and dt, both fp32[b, h, c, Q]; dt is 0 past the last token.
    """
    seqlen = dt.shape[1]
    chunks = -(-seqlen // chunk_size)
    dt = dt.float()
    if dt_bias is not None:
        dt = dt + dt_bias.float()
    if dt_softplus:
        dt = F.softplus(dt)
    if dt_limit[0] > 0.0 or dt_limit[1] < float("inf"):
        dt = dt.clamp(dt_limit[0], dt_limit[1])
    dt = F.pad(dt.transpose(1, 2), (0, chunks * chunk_size - seqlen))
    dt = dt.unflatten(2, (chunks, chunk_size)).contiguous()
    return torch.cumsum(dt * A.float()[:, None, None], dim=-1), dt


def chunk_state(B, x, dt, dA_cumsum, seq_idx=None, states=None, states_in_fp32=True):
    """State that each chunk adds by its end, counting only the sequence that reaches the chunk's end.

    B: [b, T, g, n]; x: [b, T, h, p]; dt, dA_cumsum: fp32[b, h, c, Q]; seq_idx: int[b, T] or None.
    Returns [b, c, h, p, n], fp32 or B's dtype.
    """
    batch, _, chunks, chunk_size = dt.shape
    weight = torch.exp(dA_cumsum[..., -1:] - dA_cumsum) * dt  # [b, h, c, Q]
    if seq_idx is not None:
        ids = _chunk_ids(seq_idx, chunk_size)
        weight = weight * (ids == ids[:, :, -1:])[:, None]
    added = _weighted_outer(
        x=_chunked(x, chunk_size).flatten(0, 1),
        B=_chunked(B, chunk_size).flatten(0, 1),
        weight=weight.transpose(1, 2).flatten(0, 1),
    ).unflatten(0, (batch, chunks))
    if states is None:
        return added if states_in_fp32 else added.to(B.dtype)
    states.copy_(added)
    return states


def state_passing(
    states,
    dA_cumsum,
    initial_states=None,
    seq_idx=None,
    chunk_size=None,
    out_dtype=None,
    is_cont_batched=False,
    chunk_offsets=None,
):
    """Carry the state from chunk to chunk.

    states: [b, c, h, d] from `chunk_state` with d = p · n; initial_states: [sequences, h, d] (continuous
    batching) or [b, h, d]. `chunk_offsets` is accepted for the signature: `seq_idx` says the same.
    Returns the state *before* each chunk [b, c, h, d] and the one after the last, fp32[b, h, d].
    """
    batch, chunks, heads, dim = states.shape
    chunk_size = chunk_size or dA_cumsum.shape[-1]
    log_decay = dA_cumsum[..., -1].transpose(1, 2)  # [b, c, h]
    restarts: dict[int, int] = {}  # chunk -> sequence whose initial state it starts from
    decay = torch.exp(log_decay)
    if seq_idx is not None and not (initial_states is not None and not is_cont_batched):
        last = _last_sequence(seq_idx, chunk_size)  # [b, c]
        changed = last != F.pad(last, (1, 0))[:, :-1]
        if initial_states is None:
            decay = decay * ~changed[..., None]
        else:
            restarts = {c: int(last[0, c]) for c in changed[0].nonzero().flatten().tolist()}
            for c in restarts:
                # The sequence starts inside this chunk: only what follows its first token decays its state.
                first = int((_chunk_ids(seq_idx, chunk_size)[0, c] != last[0, c]).int().argmin())
                if first > 0:
                    decay[0, c] = torch.exp(log_decay[0, c] - dA_cumsum[0, :, c, first - 1])

    out = torch.empty(batch, chunks + 1, heads, dim, dtype=torch.float32, device=states.device)
    if initial_states is None:
        out[:, 0] = 0.0
    else:
        out[:, 0] = initial_states[:1] if is_cont_batched else initial_states
    decay = decay[..., None]
    for c in range(chunks):
        before = initial_states[restarts[c]].float() if c in restarts else out[:, c]
        torch.addcmul(states[:, c], decay[:, c], before, out=out[:, c + 1])
    return out[:, :-1].to(out_dtype or states.dtype), out[:, -1]


def bmm_chunk(a, b, chunk_size, seq_idx=None, causal=False, output_dtype=None):
    """Products of each chunk's rows: out[i, j] = a[i] · b[j], zero between different sequences.

    a, b: [batch, T, g, k] (or without g). Returns [batch, c, g, Q, Q] (or without g).
    """
    grouped = a.dim() == 4
    if not grouped:
        a, b = a.unsqueeze(2), b.unsqueeze(2)
    out = torch.matmul(
        _chunked(a, chunk_size).transpose(2, 3), _chunked(b, chunk_size).permute(0, 1, 3, 4, 2)
    )  # [batch, c, g, Q, Q]
    if seq_idx is not None:
        ids = _chunk_ids(seq_idx, chunk_size)
        if bool((ids[:, :, :1] != ids).any()):  # chunks of one sequence alone need no mask
            out = out * (ids[:, :, :, None] == ids[:, :, None, :])[:, :, None]
    out = out.to(output_dtype or a.dtype)
    return out if grouped else out.squeeze(2)


def chunk_scan(
    cb,
    x,
    dt,
    dA_cumsum,
    C,
    states,
    D=None,
    z=None,
    seq_idx=None,
    chunk_indices=None,
    chunk_offsets=None,
    initial_states=None,
    out=None,
):
    """Outputs: each token's sum over its own sequence inside the chunk plus what the carried state gives.

    cb: [b, c, g, Q, Q]; x: [b, T, h, p]; dt, dA_cumsum: fp32[b, h, c, Q]; C: [b, T, g, n];
    states: [b, c, h, p, n], before each chunk; D: [h] or [h, p]; initial_states: [sequences, h, p, n].
    Mutates `out` [b, T, h, p]. Returns the output before gating by z, or None without z.
    """
    batch, _, chunks, chunk_size = dt.shape
    C = _chunked(C, chunk_size)
    ids = before = None
    C_carried = C
    if seq_idx is not None:
        ids = _chunk_ids(seq_idx, chunk_size)
        before = F.pad(_last_sequence(seq_idx, chunk_size), (1, 0))[:, :-1]
        crosses = ids == before[..., None]  # [b, c, Q]: the state carried into the chunk is this token's own
        if not bool(crosses.all()):
            C_carried = C * crosses[..., None, None]
    y = _scan_chunks(
        cb.flatten(0, 1),
        _chunked(x, chunk_size).flatten(0, 1),
        dt.transpose(1, 2).flatten(0, 1),
        dA_cumsum.transpose(1, 2).flatten(0, 1),
        C_carried.flatten(0, 1),
        states.flatten(0, 1),
    ).unflatten(0, (batch, chunks))
    if initial_states is not None and C_carried is not C:
        _add_initial_states(y, dA_cumsum, C, initial_states, ids, before)

    y = y.flatten(1, 2)[:, : x.shape[1]]
    if D is not None:
        y.addcmul_(x.float(), D.float() if D.dim() == 2 else D.float()[:, None])
    if z is None:
        out.copy_(y)
        return None
    out.copy_(y * F.silu(z.float()))
    return y.to(x.dtype)


def chunk_state_varlen(B, x, dt, dA_cumsum, cu_seqlens, chunk_states, initial_states=None):
    """State at the end of every span [cu_seqlens[i], cu_seqlens[i + 1]) of the flattened batch.

    B: [T, g, n]; x: [T, h, p]; dt, dA_cumsum: fp32[h, c, Q]; chunk_states: [c, h, p, n], before each chunk;
    initial_states: [spans, h, p, n] or None. Returns [spans, h, p, n] in chunk_states' dtype.
    """
    chunk_size = dt.shape[-1]
    starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    chunk = ((ends - 1) // chunk_size).clamp(min=0)  # the chunk that holds each span's last token
    base = chunk * chunk_size
    tokens = base[:, None] + torch.arange(chunk_size, device=x.device)  # [spans, Q]
    inside = (tokens >= starts[:, None]) & (tokens < ends[:, None])
    rows = tokens.clamp(max=x.shape[0] - 1)

    log = dA_cumsum[:, chunk]  # [h, spans, Q]
    span = torch.arange(len(chunk), device=x.device)
    last = log[:, span, (ends - 1 - base).clamp(min=0)]  # [h, spans]
    # Tokens outside the span may have a positive exponent: mask before exp, or inf · 0 turns into NaN.
    log_weight = (last[..., None] - log).masked_fill(~inside, float("-inf"))
    weight = torch.exp(log_weight) * dt[:, chunk]
    state = _weighted_outer(x=x[rows], B=B[rows], weight=weight.transpose(0, 1))

    carried = starts < base  # the span crosses into its last chunk: start from the state before that chunk
    offset = (starts - base - 1).clamp(min=0)
    boundary = torch.where(starts > base, log[:, span, offset], torch.zeros_like(last))
    previous = chunk_states[chunk].float()
    if initial_states is None:
        previous = previous * carried[:, None, None, None]
    else:
        previous = torch.where(carried[:, None, None, None], previous, initial_states.float())
    decay = torch.exp(last - boundary).transpose(0, 1)[..., None, None]
    return (state + previous * decay).to(chunk_states.dtype)


TORCH_STAGES = ScanStages(
    chunk_cumsum=chunk_cumsum,
    chunk_state=chunk_state,
    state_passing=state_passing,
    bmm_chunk=bmm_chunk,
    chunk_scan=chunk_scan,
    chunk_state_varlen=chunk_state_varlen,
)


def _chunked(t, chunk_size):
    """[b, T, ...] -> [b, c, Q, ...], zero-padded."""
    pad = -t.shape[1] % chunk_size
    if pad:
        t = torch.cat([t, t.new_zeros(t.shape[0], pad, *t.shape[2:])], dim=1)
    return t.unflatten(1, (-1, chunk_size))


def _chunk_ids(seq_idx, chunk_size):
    """seq_idx on the chunk grid, int[b, c, Q]; the padding repeats the last token's sequence."""
    pad = -seq_idx.shape[1] % chunk_size
    if pad:
        seq_idx = torch.cat([seq_idx, seq_idx[:, -1:].expand(-1, pad)], dim=1)
    return seq_idx.unflatten(1, (-1, chunk_size))


def _last_sequence(seq_idx, chunk_size):
    """Sequence of each chunk's last token, int[b, c]."""
    return _chunk_ids(seq_idx, chunk_size)[:, :, -1]


def _steps(x):
    """Slices of the leading dimension that keep a step's share of x near STEP_ELEMENTS."""
    step = max(1, STEP_ELEMENTS // max(1, x[0].numel()))
    return [slice(start, start + step) for start in range(0, x.shape[0], step)]


def _by_group(t, groups):
    """[m, Q, h, ...] -> [m, g, Q, r, ...]: the r heads of a group share B and C."""
    return t.unflatten(2, (groups, -1)).transpose(1, 2)


def _weighted_outer(*, x, B, weight):
    """Sum over a chunk's tokens of weight · x ⊗ B.

    x: [m, Q, h, p]; B: [m, Q, g, n]; weight: fp32[m, h, Q]. Returns fp32[m, h, p, n].
    """
    chunks, _, heads, head_dim = x.shape
    groups, dstate = B.shape[2:]
    out = torch.empty(
        chunks, groups, heads // groups * head_dim, dstate, dtype=torch.float32, device=x.device
    )
    for part in _steps(x):
        weighted = _by_group(x[part].float() * weight[part].transpose(1, 2)[..., None], groups).flatten(3)
        torch.matmul(weighted.transpose(2, 3), B[part].float().transpose(1, 2), out=out[part])
    return out.view(chunks, heads, head_dim, dstate)


def _scan_chunks(cb, x, dt, log, C, states):
    """Each token's sum over its chunk so far plus what the carried state gives; fp32[m, Q, h, p].

    cb: [m, g, Q, Q]; x: [m, Q, h, p]; dt and log (the running sum of A · dt): fp32[m, h, Q]; C: [m, Q, g, n];
    states: [m, h, p, n].
    """
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    starts = F.pad(log[..., ROW_BLOCK - 1 : -1 : ROW_BLOCK], (1, 0))
    ends = log[..., [*range(ROW_BLOCK - 1, log.shape[2] - 1, ROW_BLOCK), log.shape[2] - 1]]
    scan = scan_scaled if float((ends - starts).min()) > -MAX_LOG_RANGE else scan_exact
    groups = cb.shape[1]
    for part in _steps(x):
        scan(
            cb[part].float(),
            _by_group(x[part].float(), groups),
            _by_group(dt[part].transpose(1, 2), groups),
            _by_group(log[part].transpose(1, 2), groups),
            C[part].float().transpose(1, 2),
            states[part].float().unflatten(1, (groups, -1)).flatten(2, 3).transpose(2, 3),
            _by_group(y[part], groups),
        )
    return y


def scan_scaled(cb, x, dt, log, C, state, y):
    """Decays as scales of rows and columns, so that the heads of a group share one matrix product.

    Row q of a block is exp(a_q - a_s) · (Σ_k≤q cb_qk · exp(a_s - a_k) · dt_k · x_k + exp(a_s) · C_q · state),
    where a is the running log decay and s the token before the block.
    cb: [m, g, Q, Q]; x, y: [m, g, Q, r, p]; dt, log: [m, g, Q, r]; C: [m, g, Q, n]; state: [m, g, n, r·p].
    Mutates y.
    """
    size = x.shape[2]
    for start in range(0, size, ROW_BLOCK):
        stop = min(start + ROW_BLOCK, size)
        rows = slice(start, stop)
        reference = log[:, :, start - 1 : start] if start else torch.zeros_like(log[:, :, :1])
        weight = torch.exp(reference - log[:, :, :stop]).mul_(dt[:, :, :stop])
        keys = (x[:, :, :stop] * weight[..., None]).flatten(3)
        carried = torch.matmul(C[:, :, rows], state)
        if start:
            carried = (carried.unflatten(3, x.shape[3:]) * torch.exp(reference)[..., None]).flatten(3)
        block = torch.matmul(cb[:, :, rows, :stop].tril(start), keys).add_(carried)
        scale = torch.exp(log[:, :, rows] - reference)[..., None]
        torch.mul(block.unflatten(3, x.shape[3:]), scale, out=y[:, :, rows])


def scan_exact(cb, x, dt, log, C, state, y):
    """The same with one decay matrix a head: for chunks that decay beyond fp32's range. Mutates y."""
    log = log.transpose(2, 3)  # [m, g, r, Q]
    # Above the diagonal the exponent is positive: clamp it, as exp would overflow (cb is cut to zero there).
    decay = (log[..., :, None] - log[..., None, :]).clamp_(max=0.0).exp_()
    keys = (x * dt[..., None]).transpose(2, 3)  # [m, g, r, Q, p]
    block = torch.matmul(decay.mul_(cb.tril()[:, :, None]), keys)
    carried = torch.matmul(C, state).unflatten(3, x.shape[3:]).transpose(2, 3)
    y.copy_(block.addcmul_(carried, torch.exp(log)[..., None]).transpose(2, 3))


def _add_initial_states(y, dA_cumsum, C, initial_states, ids, before):
    """Add C · initial state for the tokens of each sequence that starts in a chunk, up to that chunk's end.

    y: fp32[1, c, Q, h, p], mutated. A batch has few sequences, hence the loop.
    """
    groups = C.shape[3]
    fresh = ids[0] != before[0, :, None]  # [c, Q]: the state before the chunk isn't this token's
    for chunk in fresh.any(dim=1).nonzero().flatten().tolist():
        row = ids[0, chunk]
        for sequence in torch.unique_consecutive(row[fresh[chunk]]).tolist():
            where = (row == sequence).nonzero().flatten()
            first, stop = int(where[0]), int(where[-1]) + 1
            log = dA_cumsum[0, :, chunk, first:stop]
            if first > 0:
                log = log - dA_cumsum[0, :, chunk, first - 1, None]
            state = initial_states[sequence].float().unflatten(0, (groups, -1)).flatten(1, 2)  # [g, r·p, n]
            added = torch.matmul(C[0, chunk, first:stop].transpose(0, 1).float(), state.transpose(1, 2))
            added = added.transpose(0, 1).unflatten(2, (-1, y.shape[-1])).flatten(1, 2)  # [tokens, h, p]
            y[0, chunk, first:stop] += added * torch.exp(log).transpose(0, 1)[..., None]
