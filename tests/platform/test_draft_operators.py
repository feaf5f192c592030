"""The torch twins that let a draft model draft: its tree, its locations, and the attention of its steps."""

from __future__ import annotations

import pytest
import torch

from sglang_hooks.cpu_platform import draft


def tree(
    selected: list[list[int]], parents: list[list[int]], prefixes: list[int], topk: int
) -> tuple[torch.Tensor, ...]:
    """mask (flat), positions, first child and next sibling."""
    count, nodes = len(selected), len(selected[0]) + 1
    mask = torch.ones(sum(nodes * (prefix + nodes) for prefix in prefixes) + 5, dtype=torch.bool)
    positions = torch.empty(count * nodes, dtype=torch.int64)
    index, child, sibling = (torch.full((count, nodes), -1, dtype=torch.int64) for _ in range(3))
    draft.build_tree(
        torch.tensor(parents),
        torch.tensor(selected),
        torch.tensor(prefixes),
        mask,
        positions,
        index,
        child,
        sibling,
        topk,
        3,
        nodes,
        0,
    )
    assert index.flatten().tolist() == list(range(count * nodes))
    return mask, positions, child, sibling


def test_a_chain_is_a_triangle_behind_its_prefix() -> None:
    mask, positions, child, sibling = tree([[0, 1, 2]] * 2, [[-1, 0, 1]] * 2, [2, 0], 1)
    assert positions.tolist() == [2, 3, 4, 5, 0, 1, 2, 3]
    assert child.tolist() == [[1, 2, 3, -1]] * 2 and sibling.tolist() == [[-1] * 4] * 2
    triangle = torch.ones(4, 4, dtype=torch.bool).tril()
    assert torch.equal(mask[:24].view(4, 6), torch.cat([torch.ones(4, 2, dtype=torch.bool), triangle], 1))
    assert torch.equal(mask[24:40].view(4, 4), triangle)
    assert mask[40:].all()  # what is left of a buffer that is too long stays


def test_branches_hang_below_what_they_were_drafted_from() -> None:
    """Candidates 0, 1 below the root; 2, 3 below 0; 4, 5 below 1; the next groups below 3 and 4."""
    mask, positions, child, sibling = tree([[0, 1, 3, 4, 7]], [[-1, 0, 1, 3, 4]], [0], 2)
    below = {1: 0, 2: 0, 3: 1, 4: 2, 5: 3}  # node → parent
    assert positions.tolist() == [0, 1, 1, 2, 2, 3]
    assert child.tolist() == [[1, 3, 4, 5, -1, -1]] and sibling.tolist() == [[-1, 2, -1, -1, -1, -1]]
    for node in range(6):
        path = [node]
        while path[-1] in below:
            path.append(below[path[-1]])
        assert mask[:36].view(6, 6)[node].nonzero().flatten().tolist() == sorted(path)


def test_locations_and_what_follows_a_verify() -> None:
    rows = torch.arange(40).view(2, 20)
    places = torch.empty(8, dtype=torch.int64)
    draft.draft_locations(torch.tensor([1, 0]), rows, torch.tensor([3, 5]), places, 2, 2)
    assert places.tolist() == [23, 24, 25, 26, 5, 6, 7, 8]
    bonus = torch.empty(2, dtype=torch.int32)
    draft.fill_bonus(torch.tensor([[7, 8, 9], [4, 5, 6]]), torch.tensor([3, 1]), bonus, 3, 2)
    assert bonus.tolist() == [9, 4]
    p, _, tokens, states = draft.gather_rows(torch.tensor([2, 0]), *torch.arange(9).view(3, 3), None)
    assert p.tolist() == [2, 0] and tokens.tolist() == [8, 6] and states is None


@pytest.mark.parametrize("topk", [1, 2])
def test_a_branch_sees_the_prefix_and_itself(topk: int) -> None:
    torch.manual_seed(0)
    steps, step, prefixes = 3, 1, [4, 6]
    rows = torch.randperm(2 * 20).view(2, 20)
    keys, values = torch.randn(2, 40, 2, 8)
    query = torch.randn(2 * topk, 4, 8)
    out = draft.attend_step(
        query,
        torch.empty_like(query),
        keys,
        values,
        rows,
        torch.tensor([1, 0]),
        torch.tensor(prefixes),
        step=step,
        topk=topk,
        steps=steps,
        scaling=0.3,
        enable_gqa=True,
        causal=False,
    )
    for number, (row, prefix) in enumerate(zip([1, 0], prefixes, strict=True)):
        for branch in range(topk):
            at = [*range(prefix), *(prefix + branch * steps + own for own in range(step + 1))]
            seen = rows[row, at]
            key, value = (
                part[seen].transpose(0, 1).repeat_interleave(2, 0).double() for part in (keys, values)
            )
            asked = query[number * topk + branch].double()
            weights = torch.softmax(0.3 * (key @ asked[:, :, None]).squeeze(2), 1)
            expected = (weights[:, None] @ value).squeeze(1)
            torch.testing.assert_close(out[number * topk + branch].double(), expected, rtol=1e-5, atol=1e-6)
