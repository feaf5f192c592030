"""`artifact-marconi`: FLOP-aware eviction whose α is tuned once, by replaying a window of requests.

α starts at 0. The first eviction call, after R requests, sets the window to 5·R requests. At the insert of the
request that completes it, all its requests are replayed from the empty tree for α in 0, 0.1, …, 2.0; the α
that saves most FLOPs over the last 500 of them holds from then on.
"""

from __future__ import annotations

import time

import numpy as np

from marconi_ext.profiles import paper
from marconi_ext.simulator.artifact_eviction import FlopAware
from marconi_ext.simulator.artifact_tree import ArtifactTree

WINDOW_MULTIPLIER = 5
SCORED_REQUESTS = 500
ALPHAS = tuple(i / 10 for i in range(21))


def flops_saved(hits: list[int]) -> int:
    """FLOPs that hits of these lengths save: Mamba's on their sum, attention's and the MLPs' one by one."""
    return paper.MAMBA_LAYERS * paper.mamba_flops(sum(hits)) + sum(
        paper.ATTENTION_LAYERS * paper.attention_flops(hit) + paper.MLP_LAYERS * paper.mlp_flops(hit)
        for hit in hits
    )


class TunedArtifact:
    """The tree and its tuner. `alpha` is the one in force; `tuning_seconds` what the replays took."""

    def __init__(self, capacity_bytes: int) -> None:
        self._evictor = _NoticesFirst(self)
        self.tree = ArtifactTree(capacity_bytes, self._evictor)
        self.window_requests: int | None = None
        self.alpha = 0.0
        self.tuned = False
        self.tuning_seconds = 0.0
        self._requests: list[tuple[np.ndarray, np.ndarray]] = []

    def serve(self, input_ids: np.ndarray, sequence: np.ndarray) -> int:
        hit = self.tree.match_prompt(input_ids)
        if not self.tuned:
            self._requests.append((input_ids, sequence))
            if len(self._requests) == self.window_requests:
                self._tune()
        self.tree.insert(sequence)
        return hit

    def first_eviction(self) -> None:
        """Called at the first eviction: the window is a multiple of the requests so far."""
        self.window_requests = WINDOW_MULTIPLIER * len(self._requests)

    def _tune(self) -> None:
        started = time.perf_counter()
        saved = []
        for alpha in ALPHAS:
            tree = ArtifactTree(self.tree.capacity_bytes, FlopAware(alpha), clock=1)
            hits = [tree.serve(*request) for request in self._requests]
            saved.append(flops_saved(hits[-SCORED_REQUESTS:]))
        self.alpha = ALPHAS[int(np.argmax(saved))]
        self._evictor.alpha = self.alpha
        self.tuned = True
        self._requests.clear()
        self.tuning_seconds = time.perf_counter() - started


class _NoticesFirst(FlopAware):
    """FLOP-aware with α = 0 that tells the tuner of the first eviction call."""

    def __init__(self, owner: TunedArtifact) -> None:
        super().__init__(0.0)
        self._owner = owner

    def evict(self, tree: ArtifactTree, wanted_bytes: int) -> None:
        if self._owner.window_requests is None:
            self._owner.first_eviction()
        super().evict(tree, wanted_bytes)
