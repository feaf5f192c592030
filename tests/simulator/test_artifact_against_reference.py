"""The fast FLOP-aware artifact against the plain one, and the tuner against 21 replays of the plain one."""

import numpy as np
from artifact_reference import PlainFlopAware
from hypothesis import given, settings
from hypothesis import strategies as st

from marconi_ext.profiles import paper
from marconi_ext.simulator.artifact_eviction import FlopAware
from marconi_ext.simulator.artifact_tree import ArtifactTree
from marconi_ext.simulator.artifact_tuning import ALPHAS, TunedArtifact, flops_saved

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=8)
requests = st.lists(st.tuples(tokens, st.lists(st.integers(0, 2), max_size=4)), min_size=1, max_size=40)


def fast_hits(tree, trace) -> list[int]:
    hits = []
    for prompt, output in trace:
        sequence = np.array(prompt + output, np.int32)
        hits.append(tree.serve(sequence[: len(prompt)], sequence))
    return hits


@settings(max_examples=150)
@given(trace=requests, nodes=st.integers(1, 12), alpha=st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0]))
def test_same_hits(trace, nodes, alpha) -> None:
    capacity = nodes * (paper.STATE_BYTES + 3 * paper.KV_BYTES_PER_TOKEN)
    tree, plain = ArtifactTree(capacity, FlopAware(alpha)), PlainFlopAware(capacity, alpha)
    assert fast_hits(tree, trace) == [plain.serve(tuple(p), tuple(o)) for p, o in trace]
    tree.check()


@settings(max_examples=30)
@given(trace=requests, nodes=st.integers(1, 4))
def test_tuner_picks_the_plain_replay_best(trace, nodes) -> None:
    capacity = nodes * (paper.STATE_BYTES + 3 * paper.KV_BYTES_PER_TOKEN)
    artifact = TunedArtifact(capacity)
    fast_hits(artifact, trace)
    if not artifact.tuned:
        return
    window = trace[: artifact.window_requests]
    saved = []
    for alpha in ALPHAS:
        plain = PlainFlopAware(capacity, alpha)
        saved.append(flops_saved([plain.serve(tuple(p), tuple(o)) for p, o in window][-500:]))
    assert artifact.alpha == ALPHAS[saved.index(max(saved))]
