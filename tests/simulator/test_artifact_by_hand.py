"""The compatibility mode on traces worked by hand.

One node costs 24 layers x (4096 x 128 x 2 + (2 x 4096 + 2 x 128) x 8) = 26,787,840 bytes, one token 65,536.
"""

import numpy as np
import pytest

from marconi_ext.profiles import paper
from marconi_ext.simulator.artifact_eviction import FlopAware, LruLeaves, flop_efficiency
from marconi_ext.simulator.artifact_tree import ArtifactTree
from marconi_ext.simulator.artifact_tuning import TunedArtifact, flops_saved
from marconi_ext.simulator.artifact_vllm import VllmTree

STATE, KV = 26_787_840, 65_536
AMPLE = 10**12


def serve(tree, prompt: list[int], output: list[int]) -> int:
    sequence = np.array(prompt + output, np.int32)
    return tree.serve(sequence[: len(prompt)], sequence)


def edges(tree) -> list[list[int]]:
    return [node.tokens.tolist() for node in tree.nodes()]


def test_bytes_of_the_paper_model() -> None:
    assert (paper.STATE_BYTES, paper.KV_BYTES_PER_TOKEN) == (STATE, KV)


def test_a_shared_prompt_is_reused_at_its_third_appearance() -> None:
    """1: [1 2 3 4] becomes one leaf. 2: 3 of its 4 tokens match, none on a whole edge; the insert splits it.
    3: the edge [1 2 3] matches whole. A request is 3 ticks: its match, its insert, the match inside."""
    tree = ArtifactTree(AMPLE, LruLeaves())
    assert [serve(tree, [1, 2, 3], [out]) for out in (4, 5, 6)] == [0, 0, 3]
    assert edges(tree) == [[1, 2, 3], [4], [5], [6]]
    assert tree.used_bytes == 4 * STATE + 6 * KV
    assert tree.clock == 9


def test_the_walk_goes_on_after_a_partial_edge() -> None:
    """[1 2 3] has the child [9]. Of the prompt [1 2 9] the edge [1 2 3] matches in part (2 tokens); then its
    child that starts with 9 goes on with the rest and matches whole: one token is reusable."""
    tree = ArtifactTree(AMPLE, FlopAware(0.0))
    serve(tree, [1, 2, 3], [])
    serve(tree, [1, 2, 3], [9])
    walk = tree.match(np.array([1, 2, 9], np.int32))
    assert (walk.prefix_tokens, walk.reusable_tokens, walk.last_whole.tokens.tolist()) == (3, 1, [9])


def test_lru_evicts_the_oldest_leaf() -> None:
    """Room for 4 nodes. To insert [8] one must go: [7], the oldest. To insert [9] one more: [2] and [3] carry
    the same stamp, for the walk of [1 3] entered the edge [1 2] that it then split; the heap yields [3]."""
    tree = ArtifactTree(4 * STATE + 8 * KV, LruLeaves())
    serve(tree, [7], [])
    serve(tree, [1], [2])
    serve(tree, [1], [3])
    assert edges(tree) == [[7], [1], [2], [3]]
    serve(tree, [8], [])
    assert edges(tree) == [[1], [2], [3], [8]]
    serve(tree, [9], [])
    assert edges(tree) == [[1], [2], [8], [9]]


def test_a_flop_aware_inner_victim_merges_into_its_child() -> None:
    """[1 2] -> [3] -> [4], each stamped later than the one above. α = 0: the oldest candidate, the inner [1 2],
    goes. Its KV joins [3], which keeps its own state and sits under first token 1."""
    tree = ArtifactTree(3 * STATE + 5 * KV, FlopAware(0.0))
    serve(tree, [1, 2], [])
    serve(tree, [1, 2, 3], [])
    serve(tree, [1, 2, 3, 4], [])
    first, second, _ = tree.nodes()
    assert first.stamp < second.stamp
    serve(tree, [5], [])
    assert edges(tree) == [[1, 2, 3], [4], [5]]
    assert serve(tree, [1, 2], []) == 0  # its state is gone
    tree.check()


def test_efficiency_mixes_two_formulas() -> None:
    """A node of 2 tokens under 3 others: mamba(2), attn(5) - attn(3), mlp(5) - attn(3), over the bytes of 5
    tokens and a state."""
    mamba = 2 * (12 * 4096**2 + 16 * 4096 * 128 + 10 * 4096)
    attn = {n: 8 * n * 4096**2 + 4 * n * n * 4096 for n in (3, 5)}
    flops = 24 * mamba + 4 * (attn[5] - attn[3]) + 28 * (16 * 5 * 4096**2 - attn[3])
    assert flop_efficiency(total=5, own=2) == flops / (STATE + 5 * KV)


def test_freed_bytes_are_those_of_the_last_candidate() -> None:
    """A long leaf, older, and a short one, last in order. Evicting the long one would be enough, but one state
    and *one token* are counted as freed, so the short one goes too."""
    tree = ArtifactTree(2 * STATE + 1_001 * KV, FlopAware(0.0))
    serve(tree, list(range(1_000)), [])
    serve(tree, [5_000], [])
    serve(tree, list(range(9_000, 9_500)), [])
    assert [len(edge) for edge in edges(tree)] == [500]


def test_flops_saved() -> None:
    expected = 24 * paper.mamba_flops(2) + 4 * paper.attention_flops(2) + 28 * paper.mlp_flops(2)
    assert flops_saved([0, 2]) == expected


def test_tuning_happens_once_at_five_times_the_first_eviction() -> None:
    """Room for 2 nodes of one token: the insert of request 3 evicts first, so the window is 15 requests.
    Nothing is ever reused, so all α tie and the first is kept."""
    artifact = TunedArtifact(2 * STATE + 2 * KV)
    for i in range(14):
        serve(artifact, [i], [])
    assert (artifact.window_requests, artifact.tuned) == (15, False)
    serve(artifact, [14], [])
    assert artifact.tuned and artifact.alpha == 0.0


def test_vllm_counts_whole_blocks_and_one_short_tail() -> None:
    """40 tokens are a block of 32 and a node of 8. The same 40 again: both count; the answer fills the short
    node up. With another answer only the block counts: the node of 9 is no prefix of the rest."""
    tree = VllmTree(AMPLE)
    tokens = list(range(40))
    assert serve(tree, tokens, []) == 0
    assert edges(tree) == [tokens[:32], tokens[32:]]
    assert serve(tree, tokens, [99]) == 40
    assert edges(tree) == [tokens[:32], [*tokens[32:], 99]]
    assert serve(tree, [*tokens, 77], []) == 32
    tree.check()


def test_vllm_enters_a_short_node_as_longest_prefix_only() -> None:
    """[0 1 2 3] is filled up by a sequence that goes on from it. A sequence that shares 5 tokens with the full
    node and 2 with the short one opens a child of its own."""
    tree = VllmTree(AMPLE)
    full = [*range(9), *range(100, 123)]
    serve(tree, [0, 1, 2, 3], [])
    serve(tree, full, [])
    assert edges(tree) == [full]
    serve(tree, [0, 1], [])
    serve(tree, [*range(5), 50], [])
    assert edges(tree) == [full, [0, 1], [*range(5), 50]]


@pytest.mark.parametrize("make", [lambda: ArtifactTree(1, LruLeaves()), lambda: VllmTree(1)])
def test_a_cache_too_small_for_anything_still_serves(make) -> None:
    tree = make()
    for _ in range(3):
        serve(tree, [1, 2, 3], [4])
    tree.check()
