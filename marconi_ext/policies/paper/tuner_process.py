"""A child process that finds α: logs in on stdin, answers out on stdout, lowest CPU priority.

Frames are a 4-byte length and a pickle. It knows records as small integers only, never token ids, and ends when its
parent closes the pipe or dies.

    python -m marconi_ext.policies.paper.tuner_process
"""

from __future__ import annotations

import os
import pickle
import struct
import sys
import time
from typing import IO, cast

_LENGTH = struct.Struct("<I")


def send(stream: IO[bytes], value: object) -> None:
    """Write one frame."""
    frame = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_LENGTH.pack(len(frame)) + frame)
    stream.flush()


def receive(stream: IO[bytes]) -> object:
    """Read one frame. Raises EOFError where the other side is gone."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError("the pipe is closed")
    (length,) = _LENGTH.unpack(head)
    frame = stream.read(length)
    if len(frame) < length:
        raise EOFError("the pipe closed within a frame")
    return pickle.loads(frame)


def main() -> None:
    """Answer each TuningLog with (α, seconds)."""
    from marconi_ext.policies.paper.alpha_replay import TuningLog, tune_alpha

    os.nice(19)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            log = receive(requests)
        except EOFError:
            return
        began = time.perf_counter()
        alpha = tune_alpha(cast(TuningLog, log))
        send(answers, (alpha, time.perf_counter() - began))


if __name__ == "__main__":
    main()
