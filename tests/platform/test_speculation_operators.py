"""The torch twins that verify a tree of draft tokens, against one decode step after another down each path."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch

from marconi_kernels.torch_twins import delta_rule, delta_verify
from marconi_kernels.torch_twins.conv import causal_conv1d_update, tree_parents
from marconi_kernels.torch_twins.kda import fused_recurrent_kda_packed_decode
from marconi_kernels.torch_twins.lightning import seg_la_fwd
from marconi_kernels.torch_twins.update import selective_state_update
from sglang_hooks.cpu_platform import speculation

COUNT, NODES = 3, 7


def trees(seed: int) -> list[list[int]]:
    """The parent of every node; the root's is -1, a parent comes before its children."""
    rng = random.Random(seed)
    return [[-1, *(rng.randrange(node) for node in range(1, NODES))] for _ in range(COUNT)]


def ancestors(parents: list[int], node: int) -> list[int]:
    """The path from the root to the node, which is its last."""
    path = [node]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    return path


def links(parents: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """positions - 10, first child and next sibling, by the twin that reads the mask of ancestors."""
    mask = torch.zeros(COUNT, NODES, NODES, dtype=torch.bool)
    for row, tree in enumerate(parents):
        for node in range(NODES):
            mask[row, node, ancestors(tree, node)] = True
    positions = torch.empty(COUNT * NODES, dtype=torch.int64)
    index, child, sibling = (torch.empty(COUNT, NODES, dtype=torch.int64) for _ in range(3))
    speculation.reconstruct_tree(
        mask.flatten(), torch.full((COUNT,), 10), positions, index, child, sibling, COUNT, NODES
    )
    assert index.flatten().tolist() == list(range(COUNT * NODES))
    return positions - 10, child, sibling


@pytest.mark.parametrize("seed", range(5))
def test_the_tree_comes_back_from_its_mask(seed: int) -> None:
    parents = trees(seed)
    depth, child, sibling = links(parents)
    assert depth.view(COUNT, NODES).tolist() == [
        [len(ancestors(tree, node)) - 1 for node in range(NODES)] for tree in parents
    ]
    assert tree_parents(child, sibling).tolist() == [[max(parent, 0) for parent in tree] for tree in parents]


@pytest.mark.parametrize("seed", range(5))
def test_greedy_verification_follows_the_target(seed: int) -> None:
    parents, rng = trees(seed), random.Random(seed)
    _, child, sibling = links(parents)
    tokens = torch.tensor([[rng.randrange(3) for _ in range(NODES)] for _ in range(COUNT)])
    target = torch.tensor([[rng.randrange(3) for _ in range(NODES)] for _ in range(COUNT)])
    accepted = torch.full((COUNT, 4), -1, dtype=torch.int32)
    predicted, number = torch.zeros(COUNT * NODES, dtype=torch.int32), torch.zeros(COUNT, dtype=torch.int32)
    index = torch.arange(COUNT * NODES).view(COUNT, NODES)
    speculation.verify_tree_greedy(predicted, accepted, number, tokens, index, child, sibling, target)
    for row, tree in enumerate(parents):
        node, expected = 0, [0]
        while len(expected) < 4:
            fits = [k for k in range(NODES) if tree[k] == node and tokens[row, k] == target[row, node]]
            if not fits:
                break
            node = fits[0]
            expected.append(node)
        assert [at - row * NODES for at in accepted[row].tolist() if at >= 0] == expected
        assert number[row] == len(expected) - 1
        assert all(predicted[row * NODES + at] == target[row, at] for at in expected)


@pytest.mark.parametrize("chain", [True, False], ids=["chain", "tree"])
def test_windows_are_those_of_single_steps(chain: bool) -> None:
    torch.manual_seed(0)
    dim, width = 5, 4
    parents = [list(range(-1, NODES - 1))] * COUNT if chain else trees(1)
    x, weight, bias = torch.randn(COUNT, dim, NODES), torch.randn(dim, width), torch.randn(dim)
    pool, slots = torch.randn(9, dim, width - 1), torch.tensor([4, 2, 7])
    before, kept = pool.clone(), torch.zeros(COUNT + 1, NODES, dim, width - 1)
    options = {"intermediate_conv_window": kept, "intermediate_state_indices": torch.arange(COUNT)}
    if not chain:
        _, child, sibling = links(parents)
        options |= {"retrieve_next_token": child, "retrieve_next_sibling": sibling}
        options["retrieve_parent_token"] = torch.full_like(child, 99)
    out = causal_conv1d_update(x, pool, weight, bias, "silu", conv_state_indices=slots, **options)
    for row, tree in enumerate(parents):
        for node in range(NODES):
            window = before[slots[row]][None].clone()
            for step in ancestors(tree, node):
                y = causal_conv1d_update(x[row : row + 1, :, step], window, weight, bias, "silu")
            torch.testing.assert_close(out[row, :, node], y[0], rtol=0, atol=1e-6)
            assert torch.equal(kept[row, node], window[0])
    assert torch.equal(pool[slots[0]], x[0, :, -3:])  # overwritten whatever is accepted, as on a GPU


@pytest.mark.parametrize("chain", [True, False], ids=["chain", "tree"])
def test_mamba2_states_are_those_of_single_steps(chain: bool) -> None:
    torch.manual_seed(0)
    h, p, n, g = 4, 3, 5, 2
    parents = [list(range(-1, NODES - 1))] * COUNT if chain else trees(2)
    pool, slots = torch.randn(6, h, p, n), torch.tensor([3, 1, 5])
    x, dt = torch.randn(COUNT, NODES, h, p), torch.randn(COUNT, NODES, h, 1).expand(-1, -1, -1, p)
    B, C = torch.randn(2, COUNT, NODES, g, n)
    A, D = -torch.rand(h, 1, 1).expand(-1, p, n), torch.randn(h, 1).expand(-1, p)
    bias = torch.randn(h, 1).expand(-1, p)
    before, kept, out = pool.clone(), torch.zeros(COUNT, NODES, h, p, n), torch.empty(COUNT, NODES, h, p)
    parent = None if chain else torch.tensor(parents).clamp(min=0)
    selective_state_update(
        pool,
        x,
        dt,
        A,
        B,
        C,
        D,
        dt_bias=bias,
        dt_softplus=True,
        state_batch_indices=slots,
        out=out,
        disable_state_update=True,
        intermediate_states_buffer=kept,
        retrieve_parent_token=parent,
        intermediate_state_indices=torch.arange(COUNT),
    )
    assert torch.equal(pool, before)
    for row, tree in enumerate(parents):
        for node in range(NODES):
            state, y = before[slots[row]][None].clone(), torch.empty(1, h, p)
            for step in ancestors(tree, node):
                parts = (part[row : row + 1, step] for part in (x, dt))
                selective_state_update(
                    state,
                    *parts,
                    A,
                    B[row : row + 1, step],
                    C[row : row + 1, step],
                    D,
                    dt_bias=bias,
                    dt_softplus=True,
                    out=y,
                )
            torch.testing.assert_close(kept[row, node], state[0], rtol=0, atol=1e-6)
            torch.testing.assert_close(out[row, node], y[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("chain", [True, False], ids=["chain", "tree"])
def test_delta_rule_states_are_those_of_single_steps(chain: bool) -> None:
    torch.manual_seed(0)
    heads, values, key, value = 2, 4, 5, 3
    parents = [list(range(-1, NODES - 1))] * COUNT if chain else trees(3)
    tokens = COUNT * NODES
    q, k = torch.randn(2, 1, tokens, heads, key)
    v, a, b = torch.randn(1, tokens, values, value), torch.randn(tokens, values), torch.randn(tokens, values)
    A_log, dt_bias = torch.randn(values), torch.randn(values)
    pool, slots = torch.randn(6, values, value, key), torch.tensor([3, 1, 5])
    kept = torch.zeros(COUNT, NODES, values, value, key)
    out = delta_verify.fused_sigmoid_gating_delta_rule_update(
        A_log=A_log,
        a=a,
        dt_bias=dt_bias,
        softplus_beta=1.0,
        softplus_threshold=20.0,
        q=q,
        k=k,
        v=v,
        b=b,
        initial_state_source=pool,
        initial_state_indices=slots,
        use_qk_l2norm_in_kernel=True,
        cu_seqlens=torch.arange(0, tokens + 1, NODES),
        disable_state_update=True,
        intermediate_states_buffer=kept,
        intermediate_state_indices=torch.arange(COUNT),
        cache_steps=NODES,
        retrieve_parent_token=None if chain else torch.tensor(parents).clamp(min=0),
    )
    for row, tree in enumerate(parents):
        for node in range(NODES):
            state, y = pool[slots[row]][None].clone(), torch.empty(1, 1, values, value)
            for step in ancestors(tree, node):
                at = row * NODES + step
                mixed = torch.cat([x[0, at].flatten() for x in (q, k, v)])[None]
                delta_rule.fused_recurrent_gated_delta_rule_packed_decode(
                    mixed,
                    a[at][None],
                    b[at][None],
                    A_log,
                    dt_bias,
                    key**-0.5,
                    state,
                    y,
                    torch.zeros(1, dtype=torch.int64),
                    use_qk_l2norm_in_kernel=True,
                )
            torch.testing.assert_close(kept[row, node], state[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(out[0, row * NODES + node], y[0, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("lower_bound", [None, -5.0], ids=["plain gate", "safe gate"])
@pytest.mark.parametrize("chain", [True, False], ids=["chain", "tree"])
def test_kda_states_are_those_of_single_steps(chain: bool, lower_bound: float | None) -> None:
    torch.manual_seed(0)
    heads, key, value = 3, 5, 5
    parents = [list(range(-1, NODES - 1))] * COUNT if chain else trees(4)
    tokens = COUNT * NODES
    q, k, v = torch.randn(3, 1, tokens, heads, key)
    a, b = torch.randn(tokens, heads * key), torch.randn(1, tokens, heads)
    A_log, dt_bias = torch.randn(1, 1, heads, 1), torch.randn(heads * key)
    pool, slots = torch.randn(6, heads, value, key), torch.tensor([3, 1, 5])
    before, kept = pool.clone(), torch.zeros(COUNT, NODES, heads, value, key)
    out = delta_verify.fused_sigmoid_gating_delta_rule_update(
        A_log=A_log,
        a=a,
        dt_bias=dt_bias,
        softplus_beta=1.0,
        softplus_threshold=20.0,
        q=q,
        k=k,
        v=v,
        b=b,
        initial_state_source=pool,
        initial_state_indices=slots,
        use_qk_l2norm_in_kernel=True,
        cu_seqlens=torch.arange(0, tokens + 1, NODES),
        is_kda=True,
        lower_bound=lower_bound,
        disable_state_update=True,
        intermediate_states_buffer=kept,
        intermediate_state_indices=torch.arange(COUNT),
        cache_steps=NODES,
        retrieve_parent_token=None if chain else torch.tensor(parents).clamp(min=0),
        cache_ring=False,
    )
    assert torch.equal(pool, before)
    for row, tree in enumerate(parents):
        for node in range(NODES):
            state, y = pool[slots[row]][None].clone(), torch.empty(1, 1, heads, value)
            for step in ancestors(tree, node):
                at = row * NODES + step
                mixed = torch.cat([x[0, at].flatten() for x in (q, k, v)])[None]
                fused_recurrent_kda_packed_decode(
                    mixed,
                    a[at][None],
                    b[:, at],
                    A_log.flatten(),
                    dt_bias,
                    key**-0.5,
                    state,
                    y,
                    torch.zeros(1, dtype=torch.int64),
                    use_qk_l2norm_in_kernel=True,
                    lower_bound=lower_bound,
                )
            torch.testing.assert_close(kept[row, node], state[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(out[0, row * NODES + node], y[0, 0], rtol=0, atol=1e-5)


def test_lightning_states_are_those_of_single_steps() -> None:
    torch.manual_seed(0)
    heads, width = 3, 5
    q, k, v = torch.randn(3, COUNT * NODES, heads, width)
    slopes, slots = torch.tensor([0.5, 0.05, 0.001]), torch.tensor([3, 1, 5])
    pool, rows = torch.randn(6, heads, width, width), torch.tensor([2, 0, 1])
    before, kept = pool.clone(), torch.zeros(COUNT, NODES, heads, width, width)
    meta = SimpleNamespace(batch_size=COUNT, s_offsets=slots, mask=None)
    out = seg_la_fwd(q, k, v, pool, slopes, meta, caches=kept, cache_indices=rows)
    assert torch.equal(pool, before)
    for step in range(NODES):
        part = (x.unflatten(0, (COUNT, NODES))[:, step] for x in (q, k, v))
        y = seg_la_fwd(*part, pool, slopes, meta)
        torch.testing.assert_close(kept[rows, step], pool[slots], rtol=0, atol=1e-6)
        torch.testing.assert_close(out.unflatten(0, (COUNT, NODES))[:, step], y, rtol=0, atol=1e-5)


def test_locations_of_accepted_tokens() -> None:
    places = torch.arange(100, 100 + 6)  # two sequences of three nodes
    front, accepted = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    speculation.fill_front(torch.tensor([2, 1]), places, front)
    speculation.fill_accepted(torch.tensor([[0, 2], [3, -1]]), places, accepted, 4)
    assert front.tolist() == [100, 101, 103, 0]
    assert accepted.tolist() == [100, 102, 103, 0]


def test_only_accepted_states_are_put_back() -> None:
    pool, kept = torch.zeros(2, 5, 3), torch.randn(2, 3, 4, 3)
    speculation.put_back(pool, kept, torch.tensor([4, 2, 1]), torch.tensor([3, -1, 0]))
    expected = torch.zeros(2, 5, 3)
    expected[:, 4], expected[:, 1] = kept[:, 0, 3], kept[:, 2, 0]
    assert torch.equal(pool, expected)
