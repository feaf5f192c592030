"""Our own policy: the learned index, in FLOPs per byte."""

from __future__ import annotations

from marconi_ext.policies.learned import LearnedIndex


class Ours(LearnedIndex):
    """Placeholder of the same behaviour until it departs from GIT."""
