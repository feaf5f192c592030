"""The ranks beside the first of an engine in process: forks that follow it, as tensor and pipeline parallelism has it.

SGLang's loops carry requests from the first rank to all others, so only that one is fed. They can't be told to end;
they are killed with the engine, and an engine one of whose ranks has died ends as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

QUIET_ROUNDS = 4  # without anything to do, after which nothing is under way on any stage

_children: list[int] = []


class _DoneError(Exception):
    """The loop is left."""


def fork(ranks: int, run: Callable[[int], None]) -> None:
    """Start the ranks from 1 on, each of which runs `run(rank)` for good."""
    for rank in range(1, ranks):
        child = os.fork()
        if not child:
            _children.clear()
            try:
                run(rank)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            os._exit(1)
        _children.append(child)
    signal.signal(signal.SIGCHLD, _look)


def end() -> None:
    """Kill them."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in _children:
        os.kill(child, signal.SIGKILL)


def _look(*_signal: object) -> None:
    for child in _children:
        if os.waitpid(child, os.WNOHANG)[0]:
            _children.remove(child)
            print(f"rank process {child} ended", file=sys.stderr, flush=True)
            end()
            os._exit(1)


class FirstRank:
    """Feeds the engine's first rank, and leaves its loop when all is answered and the other ranks wait for more."""

    def __init__(self, engine: Any) -> None:
        from sglang.srt.managers.scheduler_components.request_receiver import SchedulerRequestReceiver
        from sglang.srt.runtime_context import get_parallel

        self._engine, self._polls, self._quiet = engine, 0, 0
        parallel = get_parallel()
        self._round = parallel.pp_size + parallel.pp_async_batch_depth  # polls of one round of micro-batches
        SchedulerRequestReceiver._pull_raw_reqs = lambda receiver: self._pull()

    def run(self) -> None:
        """Until all requests are answered."""
        self._polls = self._quiet = 0
        with contextlib.suppress(_DoneError):
            self._engine.scheduler.run_event_loop()

    def _pull(self) -> list[Any]:
        due = self._engine.due()
        self._quiet = self._quiet + 1 if self._engine.all_answered else 0
        if self._polls % self._round == 0 and self._quiet > QUIET_ROUNDS * self._round:
            self._let_sends_arrive()
            raise _DoneError  # every stage begins a round together
        self._polls += 1
        return due

    def _let_sends_arrive(self) -> None:
        """A loop that begins anew forgets what it has sent, and what is forgotten before it has arrived is lost."""
        scheduler = self._engine.scheduler
        for name in ("send_req_work", "send_proxy_work", "send_output_work"):
            for work in getattr(scheduler, name, ()):
                if work.work is not None:
                    work.work.wait()
