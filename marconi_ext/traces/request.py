"""One request of a trace: what was asked, what was answered, and when."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, eq=False)
class Request:
    """One model call.

    session_id: conversation that the request belongs to; turns of one session follow one another
    turn: position inside its session, from 0
    arrival_s: seconds since the trace's first request
    input_ids: int32[L] - the whole prompt, history included, L >= 1; often a view of a longer array
    output_ids: int32[M] - the answer, stop token included where the trace has one, M >= 0
    boundaries: token offsets inside input_ids at which a message ends, where they are known
    """

    session_id: str
    turn: int
    arrival_s: float
    input_ids: np.ndarray
    output_ids: np.ndarray
    boundaries: tuple[int, ...] = ()


def token_array(ids: ArrayLike) -> np.ndarray:
    """Return ids as a read-only int32 array."""
    array = np.asarray(ids, dtype=np.int32)
    array.flags.writeable = False
    return array
