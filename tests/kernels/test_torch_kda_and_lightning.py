"""The torch twins of KDA's and lightning attention's operators against their definitions in float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from marconi_kernels.torch_twins.kda import chunk_kda, fused_recurrent_kda_packed_decode, kda_gate
from marconi_kernels.torch_twins.lightning import seg_la_fwd

HEADS, KEY, VALUE, SLOTS = 3, 16, 8, 6
LENGTHS = [1, 65, 130]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def close(found: torch.Tensor, exact: torch.Tensor) -> bool:
    return bool((found - exact).norm() / exact.norm() < 3e-6)


def starts() -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32)


@pytest.mark.parametrize("lower_bound", [None, -5.0], ids=["plain", "safe-gate"])
def test_kda_prefill_and_decode_equal_the_recurrence(lower_bound: float | None) -> None:
    """The last token is taken by the packed decode, the others by the chunked prefill."""
    tokens = sum(LENGTHS)
    q, k, v = (
        normal(tokens, HEADS, KEY, seed=1),
        normal(tokens, HEADS, KEY, seed=2),
        normal(tokens, HEADS, VALUE, seed=3),
    )
    raw, beta = normal(tokens, HEADS, KEY, seed=4) * 0.5 - 2, normal(tokens, HEADS, seed=5)
    a_log, bias = normal(HEADS, seed=6) * 0.3 - 1, normal(HEADS * KEY, seed=7) * 0.3
    pool = normal(SLOTS, HEADS, VALUE, KEY, seed=8)
    slots = torch.tensor([4, 0, 2])
    expected = pool.double()
    outputs = torch.zeros(tokens, HEADS, VALUE, dtype=torch.float64)
    decay = kda_gate(raw.double(), a_log, bias, lower_bound).double().exp()
    begins = starts().tolist()
    norm = [x.double() / (x.double().square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k)]
    for row, slot in enumerate(slots.tolist()):
        state = expected[slot]
        for t in range(begins[row], begins[row + 1]):
            state = state * decay[t][:, None]
            error = v[t].double() - torch.einsum("hvk,hk->hv", state, norm[1][t])
            state = state + torch.einsum(
                "hv,hk->hvk", error * beta[t].double().sigmoid()[:, None], norm[1][t]
            )
            outputs[t] = torch.einsum("hvk,hk->hv", state, norm[0][t]) * KEY**-0.5
        expected[slot] = state

    ends = [end - 1 for end in begins[1:]]
    early = [t for t in range(tokens) if t not in ends]
    shorter = torch.tensor([0, *(torch.tensor(LENGTHS) - 1).cumsum(0)], dtype=torch.int32)
    found = pool.clone()
    track = torch.zeros(3, HEADS, VALUE, KEY)
    out = chunk_kda(
        *(x[early].unsqueeze(0) for x in (q, k, v, raw, beta)),
        initial_state=found,
        initial_state_indices=slots,
        use_qk_l2norm_in_kernel=True,
        cu_seqlens=shorter,
        A_log=a_log.view(1, 1, -1, 1),
        dt_bias=bias,
        lower_bound=lower_bound,
        beta_is_raw=True,
        track_state=track,
        track_chunk_idx=torch.tensor([-1, 0, 1]),
    )
    assert close(out[0], outputs[early])
    assert torch.equal(track[1], pool[0])  # before its first chunk
    step = torch.empty(3, 1, HEADS, VALUE)
    packed = torch.cat([x[ends].flatten(1) for x in (q, k, v)], dim=1)
    fused_recurrent_kda_packed_decode(
        packed,
        raw[ends].flatten(1),
        beta[ends],
        a_log,
        bias,
        KEY**-0.5,
        found,
        step,
        slots,
        True,
        lower_bound,
    )
    assert close(step[:, 0], outputs[ends])
    assert close(found, expected)


def test_lightning_prefill_and_decode_equal_the_recurrence() -> None:
    tokens = sum(LENGTHS)
    q, k, v = (normal(tokens, HEADS, KEY, seed=seed) for seed in (1, 2, 3))
    slopes = torch.tensor([0.5, 0.05, 0.001])
    pool = normal(SLOTS, HEADS, KEY, KEY, seed=4)
    slots, warm = torch.tensor([4, 0, 2]), torch.tensor([True, False, True])
    expected, outputs = pool.double(), torch.zeros(tokens, HEADS, KEY, dtype=torch.float64)
    begins, tracked = starts().tolist(), None
    for row, slot in enumerate(slots.tolist()):
        state = expected[slot] * float(warm[row])
        for t in range(begins[row], begins[row + 1]):
            state = state * (-slopes.double()).exp()[:, None, None]
            state = state + torch.einsum("hk,hv->hkv", k[t].double(), v[t].double())
            outputs[t] = torch.einsum("hk,hkv->hv", q[t].double(), state) * KEY**-0.5
            if row == 2 and t - begins[row] == 127:
                tracked = state
        expected[slot] = state
    expected[5] = tracked
    found = pool.clone()
    meta = SimpleNamespace(batch_size=3, q_offsets=starts(), s_offsets=slots, s_scales=warm, mask=None)
    track = {"track_lens": torch.tensor([0, 0, 128]), "track_state_indices": torch.tensor([-1, -1, 5])}
    out = seg_la_fwd(q, k, v, found, slopes.view(-1, 1, 1), meta, **track)
    assert close(out, outputs)
    assert close(found, expected)

    decoding = SimpleNamespace(**(vars(meta) | {"s_scales": torch.ones(3)}))
    step = seg_la_fwd(q[:3], k[:3], v[:3], found, slopes.view(-1, 1, 1), decoding)
    for row, slot in enumerate(slots.tolist()):
        state = expected[slot] * (-slopes.double()).exp()[:, None, None]
        state = state + torch.einsum("hk,hv->hkv", k[row].double(), v[row].double())
        assert close(step[row], torch.einsum("hk,hkv->hv", q[row].double(), state) * KEY**-0.5)
        assert close(found[slot], state)
