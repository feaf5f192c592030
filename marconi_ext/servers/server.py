"""Starts an SGLang server on a free loopback port, watches it, and always stops it with its children."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from marconi_ext.errors import CheckFailedError
from marconi_ext.servers.engine_options import CPU_PLATFORM
from marconi_ext.servers.http_client import direct_client

TAIL_LINES = 25
STOP_S = 1.0  # schedulers end at once; the launcher would then wait 5 s for crash diagnostics
POLL_S = 0.25
ASK_S = 30.0
HEALTH_S = 5.0
PORTS = range(10_000, 32_000)
LAUNCHER = (sys.executable, "-m", "sglang.launch_server")
FORKING_LAUNCHER = (sys.executable, "-m", "marconi_ext.servers.forking_launcher")


def launcher(variables: Mapping[str, str]) -> tuple[str, ...]:
    """The one that forks on the CPU platform, but where Triton interprets: it decides that at import, so each process
    needs its own."""
    on_cpu = variables.get("SGLANG_PLATFORM") == CPU_PLATFORM
    return FORKING_LAUNCHER if on_cpu and variables.get("MARCONI_CPU_MODE") != "interpreter" else LAUNCHER


class ServerError(CheckFailedError):
    """A server that didn't start, or died. The message ends with its log's tail."""


@dataclass(frozen=True)
class ServerSpec:
    """What to start: SGLang's command-line flags (without host and port) and the whole environment.

    command: before the flags; None: what `launcher` chooses
    """

    flags: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    command: tuple[str, ...] | None = None


class Server:
    """One running server; a context manager.

    url: where it listens; log_path: file with its output, stderr included, kept after the end
    """

    def __init__(self, spec: ServerSpec, log_path: Path | None = None) -> None:
        self.spec = spec
        if log_path is None:
            handle, name = tempfile.mkstemp(prefix="marconi-server-", suffix=".log")
            os.close(handle)
            log_path = Path(name)
        self.log_path = log_path
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._http = direct_client(self.url, timeout_s=ASK_S)
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def arguments(self) -> list[str]:
        """The whole command line."""
        command = self.spec.command or launcher(self.spec.environment)
        return [*command, *self.spec.flags, "--host", "127.0.0.1", "--port", str(self.port)]

    @property
    def group(self) -> int:
        """The process group of the server and its children."""
        assert self._process is not None, "it wasn't started"
        return self._process.pid

    def start(self, timeout_s: float = 300.0, on_wait: Callable[[float], None] | None = None) -> None:
        """Start and wait until /health answers 200; on_wait is called with the seconds waited so far.

        Raises ServerError: the process ended, or wasn't healthy in time (it is stopped then).
        """
        self.launch()
        self.wait_until_healthy(timeout_s, on_wait)

    def launch(self) -> None:
        """Start the process, and don't wait for it."""
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self.arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.spec.environment,
                start_new_session=True,  # so that its children can be stopped with it
            )

    def wait_until_healthy(
        self, timeout_s: float = 300.0, on_wait: Callable[[float], None] | None = None
    ) -> None:
        """The second half of `start`, for servers that were launched side by side."""
        began = time.monotonic()
        try:
            while not self._healthy():
                waited_s = time.monotonic() - began
                self.require_alive()
                if waited_s > timeout_s:
                    raise ServerError(
                        f"server not healthy after {timeout_s:.0f} s; its log ends:\n{self.log_tail()}"
                    )
                if on_wait:
                    on_wait(waited_s)
                time.sleep(POLL_S)
        except BaseException:
            self.stop()
            raise

    def require_alive(self) -> None:
        """Raise ServerError if the process has ended."""
        code = self._process.poll() if self._process else None
        if self._process is None or code is not None:
            raise ServerError(f"server ended with exit code {code}; its log ends:\n{self.log_tail()}")

    def cpu_s(self) -> float:
        """Processor time that the server and its children have used so far, in steps of 10 ms."""
        ticks = sum(int(fields[11]) + int(fields[12]) for fields in group_stats(self.group))
        return ticks / os.sysconf("SC_CLK_TCK")

    def info(self) -> dict:
        """What /server_info says: the configuration as resolved."""
        answer = self._http.get("/server_info")
        answer.raise_for_status()
        return answer.json()

    def flush_cache(self, timeout_s: float = 30.0) -> None:
        """Empty the prefix cache; waits for requests that are just ending. Raises ServerError."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.require_alive()
            try:
                answer = self._http.post("/flush_cache", timeout=timeout_s)
                if answer.status_code == 200:
                    return
                said = answer.text.strip()
            except httpx.HTTPError as error:
                said = repr(error)
            if time.monotonic() > deadline:
                raise ServerError(f"the server didn't flush its cache within {timeout_s:.0f} s: {said}")
            time.sleep(POLL_S)

    def log_text(self) -> str:
        """All that the server has written so far."""
        try:
            return self.log_path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def log_tail(self, lines: int = TAIL_LINES) -> str:
        return "\n".join(f"  | {line}" for line in self.log_text().splitlines()[-lines:])

    def stop(self) -> None:
        """End the server and its children: asked first, killed when that takes too long. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        deadline = time.monotonic() + STOP_S
        signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        # The launcher may end before its schedulers do, so wait for the group and not for it alone.
        while group_lives(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        signal_group(process.pid, signal.SIGKILL)
        process.wait()

    def _healthy(self) -> bool:
        try:
            return self._http.get("/health", timeout=HEALTH_S).status_code == 200
        except httpx.HTTPError:
            return False


def free_port() -> int:
    """A TCP port of the loopback interface that nobody has now. From those that no outgoing connection gets, for SGLang
    takes others at a distance from it."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def signal_group(leader: int, number: int) -> None:
    """Send a signal to all processes of a group, if any are left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)


def group_lives(leader: int) -> bool:
    """Whether a process of the group is left that isn't a zombie waiting to be collected."""
    return any(fields[0] != "Z" for fields in group_stats(leader))


def group_stats(leader: int) -> Iterator[list[str]]:
    """For each process of a group, the fields of its /proc stat line from the state on."""
    return (fields for _, fields in group_members(leader))


def group_members(leader: int) -> Iterator[tuple[Path, list[str]]]:
    """For each process of a group, its folder in /proc and the fields of its stat line from the state on."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        if int(fields[2]) == leader:
            yield stat.parent, fields
