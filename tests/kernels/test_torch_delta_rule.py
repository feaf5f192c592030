"""The torch delta rule against its definition in float64, one token after another."""

from __future__ import annotations

import pytest
import torch

from marconi_kernels.torch_twins.delta_rule import (
    L2_EPSILON,
    chunk_gated_delta_rule,
    delta_rule_step,
    l2norm,
)
from marconi_kernels.torch_twins.kda import chunk_kda

HEADS, KEY, VALUE = 3, 16, 8


def recurrence(q, k, v, g, beta, state):
    outputs = []
    for t in range(len(q)):
        decay = g[t].exp()
        state = state * (decay[:, None, None] if g.dim() == 2 else decay[:, None, :])
        update = (v[t] - torch.einsum("hvk,hk->hv", state, k[t])) * beta[t][:, None]
        state = state + torch.einsum("hv,hk->hvk", update, k[t])
        outputs.append(torch.einsum("hvk,hk->hv", state, q[t]))
    return torch.stack(outputs), state


def inputs(tokens: int, per_key: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    decay = (tokens, HEADS, KEY) if per_key else (tokens, HEADS)
    return [
        l2norm(normal(tokens, HEADS, KEY)),
        l2norm(normal(tokens, HEADS, KEY)),
        normal(tokens, HEADS, VALUE),
        -normal(*decay).abs() * 0.3,
        torch.rand(tokens, HEADS, generator=generator),
        normal(HEADS, VALUE, KEY),
    ]


@pytest.mark.parametrize("per_key", [False, True], ids=["gdn", "kda"])
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 200])
def test_chunks_equal_the_recurrence(tokens: int, per_key: bool) -> None:
    q, k, v, g, beta, state = inputs(tokens, per_key)
    pool = state.unsqueeze(0).clone()
    out = (chunk_kda if per_key else chunk_gated_delta_rule)(
        *(x.unsqueeze(0) for x in (q, k, v, g, beta)),
        scale=1.0,
        initial_state=pool,
        initial_state_indices=torch.tensor([0]),
        use_qk_l2norm_in_kernel=True,
        cu_seqlens=torch.tensor([0, tokens]),
    )
    out = out if per_key else out[0]
    q, k = (x.double() / (x.double().square().sum(-1, keepdim=True) + L2_EPSILON).sqrt() for x in (q, k))
    expected = recurrence(q, k, *(x.double() for x in (v, g, beta, state)))
    for found, exact in zip((out[0], pool[0]), expected, strict=True):
        assert (found - exact).norm() / exact.norm() < 2e-6


@pytest.mark.parametrize("per_key", [False, True], ids=["gdn", "kda"])
def test_a_step_equals_the_recurrence_and_leaves_padding_alone(per_key: bool) -> None:
    q, k, v, g, beta, state = inputs(1, per_key)
    pool = torch.stack([torch.full_like(state, 7.0), state])
    rows = [x.expand(2, *x.shape[1:]) for x in (q, k, v, g, beta)]
    out = delta_rule_step(*rows, pool, torch.tensor([-1, 1]))
    expected, last = recurrence(q, k, v, g, beta, state)
    torch.testing.assert_close(out, torch.cat([torch.zeros_like(expected), expected]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pool, torch.stack([torch.full_like(state, 7.0), last]), rtol=1e-5, atol=1e-6)
