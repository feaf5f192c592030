"""Follows one server's state events over ZeroMQ, and asks for what it missed.

Messages are (topic, sequence number, batch), as SGLang's publisher sends them. After a gap that replay can't fill
nothing is known of the server: the index is emptied, which costs hits for a while, never a wrong answer.
"""

from __future__ import annotations

import contextlib
from typing import Any

from marconi_ext.routing.state_index import StateIndex

_REPLAY_MS = 1_000


class StateFollower:
    """endpoint: the events', as tcp://host:port (+ rank); replay_endpoint: where missed batches can be asked for.

    Needs pyzmq and msgspec (`pip install marconi-ext[router]`). Not thread-safe.
    """

    def __init__(self, endpoint: str, *, topic: str = "states", replay_endpoint: str | None = None) -> None:
        import msgspec
        import zmq

        self._zmq, self._decode = zmq, msgspec.msgpack.decode
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        self._socket.setsockopt(zmq.RCVHWM, 100_000)
        self._socket.connect(endpoint)
        self._replay_endpoint = replay_endpoint
        self._next = 0
        self.index = StateIndex()
        self.lost_batches = 0  # that replay couldn't bring back

    def __enter__(self) -> StateFollower:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening."""
        self._socket.close(linger=0)

    def poll(self, timeout_ms: int = 0) -> int:
        """Take in all that has come, waiting up to `timeout_ms` for the first. Returns: batches."""
        taken = 0
        while self._socket.poll(0 if taken else timeout_ms):
            _topic, number, payload = self._socket.recv_multipart()
            self._take(int.from_bytes(number, "big"), payload)
            taken += 1
        return taken

    def _take(self, number: int, payload: bytes) -> None:
        if (
            number < self._next
        ):  # the server was started anew; its first batches may have come before we heard of it
            self.index.clear()
            self._next = 0
        if number > self._next:
            self._catch_up(number)
        self._apply(payload)
        self._next = number + 1

    def _apply(self, payload: bytes) -> None:
        _sent_at, events, *_rank = self._decode(payload)
        self.index.apply(events)

    def _catch_up(self, until: int) -> None:
        """Bring the batches before `until`, or forget what was known."""
        for number, payload in self._replayed():
            if number == self._next and number < until:
                self._apply(payload)
                self._next += 1
        if self._next < until:
            self.lost_batches += until - self._next
            self.index.clear()
            self._next = until

    def _replayed(self) -> list[tuple[int, bytes]]:
        if self._replay_endpoint is None:
            return []
        found: list[tuple[int, bytes]] = []
        socket: Any = self._context.socket(self._zmq.DEALER)
        with contextlib.closing(socket):
            socket.setsockopt(self._zmq.LINGER, 0)
            socket.connect(self._replay_endpoint)
            socket.send_multipart((b"", self._next.to_bytes(8, "big")))
            while socket.poll(_REPLAY_MS):
                *_, number, payload = socket.recv_multipart()
                if int.from_bytes(number, "big", signed=True) < 0:
                    break
                found.append((int.from_bytes(number, "big"), payload))
        return found
