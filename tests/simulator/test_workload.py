"""A trace in memory, and the yardstick that comes with it."""

import numpy as np

from marconi_ext.simulator.workload import load_workload
from marconi_ext.traces import Request


def test_what_unlimited_kv_would_have_given_by_hand() -> None:
    """Of the second prompt's 6 tokens the first 4 are held, of the third's 4 all but the last, which is computed."""
    ids = [[1, 2, 3], [1, 2, 3, 9, 7, 7], [1, 2, 3, 9]]
    requests = [
        Request("s", i, float(i), np.array(prompt, np.int32), np.array([9, 5], np.int32))
        for i, prompt in enumerate(ids)
    ]
    workload = load_workload("by hand", 3, iter(requests))
    assert (workload.name, workload.seed, workload.ideal_tokens) == ("by hand", 3, 4 + 3)
    assert workload.prompt_tokens.tolist() == [3, 6, 4] and workload.requests == requests
