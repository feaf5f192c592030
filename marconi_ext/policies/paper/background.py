"""α tuned in the background: a child process a rank, and a new α that holds from the same request on every rank.

The scheduler only takes a snapshot of small integers and, every few requests while a round is out, asks whether
all ranks have their answer; each rank finds the same α, because the log and the replay are the same.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Protocol, cast

from marconi_ext.policies.paper import tuner_process
from marconi_ext.policies.paper.alpha_replay import TuningLog, tune_alpha
from marconi_ext.policies.paper.tuner import Marconi

logger = logging.getLogger(__name__)

ASK_EVERY = 16  # requests between two looks at a round that is out
GIVE_UP_AFTER = 8_192  # requests; then the round is dropped, on every rank at once


class Rounds(Protocol):
    """Finds α for a log, one round at a time."""

    def submit(self, log: TuningLog) -> None: ...
    def answer(self) -> tuple[float, float] | None: ...
    def wait(self) -> tuple[float, float]: ...
    def close(self) -> None: ...


class AlphaProcess:
    """Runs rounds one at a time. A child that dies is started again, once a round."""

    def __init__(self) -> None:
        self._child: subprocess.Popen | None = None
        self._starting = threading.Lock()
        self._round = 0
        self._working: threading.Thread | None = None
        self._answer: tuple[float, float] | None = None
        self._log: TuningLog | None = None

    def submit(self, log: TuningLog) -> None:
        """Start a round; returns at once. One that still runs has been given up, and its answer with it."""
        if self._working is not None and self._working.is_alive():
            self.close()
        self._round += 1
        self._answer, self._log = None, log
        self._working = threading.Thread(
            target=self._run, args=(log, self._round), name="marconi-tuner", daemon=True
        )
        self._working.start()

    def answer(self) -> tuple[float, float] | None:
        """(α, seconds) of the round, or None while it runs or after it failed."""
        return self._answer

    def wait(self) -> tuple[float, float]:
        """The round's answer, as soon as the child has it; found in this thread where it failed."""
        assert self._working is not None and self._log is not None, "no round was submitted"
        self._working.join()
        return self._answer or (tune_alpha(self._log), 0.0)

    def close(self) -> None:
        """End the child, and the round that waits for it."""
        with self._starting:
            self._round += 1
            child, self._child = self._child, None
        if child is not None:
            _end(child)

    def _run(self, log: TuningLog, number: int) -> None:
        for attempt in (1, 2):
            child = self._start(number)
            if child is None:
                return
            try:
                assert child.stdin is not None and child.stdout is not None
                tuner_process.send(child.stdin, log)
                answer = cast(tuple[float, float], tuner_process.receive(child.stdout))
            except (OSError, EOFError, ValueError) as error:
                _end(child)
                if number == self._round:
                    logger.warning("marconi-ext: the tuner process ended (attempt %d): %s", attempt, error)
                continue
            with self._starting:
                if number == self._round:
                    self._answer = answer
            return

    def _start(self, number: int) -> subprocess.Popen | None:
        """The child for this round; None where the round has been given up."""
        with self._starting:
            if number != self._round:
                return None
            if self._child is None or self._child.poll() is not None:
                self._child = subprocess.Popen(
                    [sys.executable, "-m", tuner_process.__name__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            return self._child


def _end(child: subprocess.Popen) -> None:
    child.kill()
    child.wait()


class AlphaHere:
    """Answers at once, in this thread: for simulation."""

    def submit(self, log: TuningLog) -> None:
        self._answer = tune_alpha(log), 0.0

    def answer(self) -> tuple[float, float] | None:
        return self._answer

    def wait(self) -> tuple[float, float]:
        return self._answer

    def close(self) -> None:
        pass


class Tuner:
    """Steps a `Marconi` policy that tunes in the background. `step` is called once a request, on every rank.

    interval: requests between an α and the next window; None: tune once
    agree: (request, this rank is ready) -> whether the round takes effect now; a collective call where there are
        several ranks. A rank that isn't ready is waited for then
    on_tuned: (parameters, seconds, requests that the round took)
    """

    def __init__(
        self,
        policy: Marconi,
        interval: int | None = None,
        *,
        rounds: Rounds | None = None,
        agree: Callable[[int, bool], bool] = lambda request, ready: ready,
        on_tuned: Callable[[Mapping[str, float], float, int], None] = lambda *_: None,
    ) -> None:
        policy.background = True
        self._policy = policy
        self._interval = interval
        self._agree = agree
        self._on_tuned = on_tuned
        self._rounds = rounds or AlphaProcess()
        self._out_since: int | None = None  # request at which the running round was submitted
        self._applied_at = 0
        self.applied: list[tuple[int, float]] = []  # (request, α) of all rounds that took effect

    def step(self, request: int) -> None:
        """`request`: its number, the same on every rank. Takes well under a millisecond."""
        policy = self._policy
        if self._out_since is None:
            if policy.tuned and self._interval is not None and request - self._applied_at >= self._interval:
                policy.restart()
            if policy.due:
                self._rounds.submit(policy.snapshot())
                self._out_since = request
            return
        waited = request - self._out_since
        if waited % ASK_EVERY:
            return
        answer = self._rounds.answer()
        if self._agree(request, answer is not None):
            alpha, seconds = answer or self._rounds.wait()
            policy.apply(alpha)
            self.applied.append((request, alpha))
            self._on_tuned(policy.parameters(), seconds, waited)
        elif waited < GIVE_UP_AFTER:
            return
        else:
            logger.warning("marconi-ext: no answer from the tuner in %d requests; α stays", waited)
            policy.apply(policy.alpha)
        self._out_since, self._applied_at = None, request

    def close(self) -> None:
        """End the child process."""
        with contextlib.suppress(OSError):
            self._rounds.close()


def replayed(policy: Marconi, interval: int | None, applied_at: Collection[int]) -> Tuner:
    """A tuner for simulation whose rounds take effect at the requests at which a server's did."""
    requests = frozenset(applied_at)
    return Tuner(policy, interval, rounds=AlphaHere(), agree=lambda request, ready: request in requests)
