"""What stands before several servers and says which one a request goes to.

`round-robin`, `sticky` and `resumable` choose here. `sglang:POLICY` starts sglang-router (`pip install sglang-router`),
which passes requests on itself.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx
import numpy as np

from marconi_ext.errors import BadInputError, CheckFailedError
from marconi_ext.routing.advisor import Advice, Advisor
from marconi_ext.routing.follower import StateFollower
from marconi_ext.servers.server import free_port

OWN = ("round-robin", "sticky", "resumable")
SGLANG, BINARY = "sglang:", "sglang-router"
SGLANG_POLICIES = ("random", "round_robin", "cache_aware", "power_of_two", "manual")
START_S = 300.0  # it imports SGLang first


@dataclass(frozen=True)
class Way:
    """Where a request goes, and with which headers."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    advice: Advice | None = None


class Router(Protocol):
    """Picks a server for each request. Not thread-safe."""

    def pick(self, prompt: np.ndarray, session_id: str) -> Way:
        """For a prompt int32[L]."""

    def prefilled(self, way: Way) -> None:
        """The first token of a request that went this way has come."""

    def close(self) -> None:
        """Stop what was started."""


class _Own:
    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = list(urls)

    def prefilled(self, way: Way) -> None:
        """Nothing to note."""

    def close(self) -> None:
        """Nothing was started."""


class RoundRobin(_Own):
    """Each server in turn."""

    _turn = -1

    def pick(self, prompt: np.ndarray, session_id: str) -> Way:
        self._turn += 1
        return Way(self.urls[self._turn % len(self.urls)])


class Sticky(_Own):
    """A session stays where it began: on the server with fewest sessions."""

    def __init__(self, urls: Sequence[str]) -> None:
        super().__init__(urls)
        self._home: dict[str, str] = {}

    def pick(self, prompt: np.ndarray, session_id: str) -> Way:
        if session_id not in self._home:
            counts = Counter(self._home.values())
            self._home[session_id] = min(self.urls, key=lambda url: (counts[url], url))
        return Way(self._home[session_id])


class Resumable(_Own):
    """By what each server can resume, as its state events tell."""

    def __init__(self, urls: Sequence[str], event_ports: Sequence[int]) -> None:
        super().__init__(urls)
        self._followers = {
            url: StateFollower(f"tcp://127.0.0.1:{port}") for url, port in zip(urls, event_ports, strict=True)
        }
        self._advisor = Advisor(dict(self._followers))
        time.sleep(1)  # a subscription takes a moment

    def pick(self, prompt: np.ndarray, session_id: str) -> Way:
        advice = self._advisor.pick(prompt)
        self._advisor.started(advice)
        return Way(advice.server, advice=advice)

    def prefilled(self, way: Way) -> None:
        if way.advice is not None:
            self._advisor.ended(way.advice)

    def close(self) -> None:
        for follower in self._followers.values():
            follower.close()


class SglangRouter:
    """sglang-router as a process of its own. `manual` gets the session as its routing key."""

    def __init__(self, policy: str, urls: Sequence[str], logs: Path) -> None:
        binary = _binary(policy)
        port, metrics = free_port(), free_port()
        self._url = f"http://127.0.0.1:{port}"
        log = logs / f"sglang-router-{policy}.log"
        command = [binary, "launch", "--worker-urls", *urls, "--policy", policy, "--host", "127.0.0.1"]
        if policy == "manual":  # new keys go to the server with fewest
            command += ["--assignment-mode", "min_group"]
        command += ["--port", str(port), "--prometheus-port", str(metrics)]
        with log.open("ab") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise CheckFailedError(f"{BINARY} didn't start; its log is {log}")
            time.sleep(0.2)

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self._url}/readiness", timeout=2, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def pick(self, prompt: np.ndarray, session_id: str) -> Way:
        return Way(self._url, {"x-smg-routing-key": session_id})

    def prefilled(self, way: Way) -> None:
        """The router sees that itself."""

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def check_routers(text: str) -> list[str]:
    """The names of `--router`, all of which can be run. Raises BadInputError."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = [*OWN, *(SGLANG + policy for policy in SGLANG_POLICIES)]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise BadInputError(f"--router {text}: choose from {', '.join(known)}")
    for name in names:
        if name.startswith(SGLANG):
            _binary(name.removeprefix(SGLANG))
    return names


def _binary(policy: str) -> str:
    """Where sglang-router is: on PATH, or beside this Python. Raises BadInputError."""
    binary = shutil.which(BINARY) or shutil.which(BINARY, path=str(Path(sys.executable).parent))
    if binary is None:
        raise BadInputError(f"--router sglang:{policy}: no {BINARY} on PATH; pip install sglang-router")
    return binary


def make_router(name: str, urls: Sequence[str], event_ports: Sequence[int], logs: Path) -> Router:
    """A fresh router that knows nothing yet."""
    if name.startswith(SGLANG):
        return SglangRouter(name.removeprefix(SGLANG), urls, logs)
    if name == "resumable":
        return Resumable(urls, event_ports)
    return RoundRobin(urls) if name == "round-robin" else Sticky(urls)
