"""A server on the CPU platform whose own checks are on, and whose log must hold no error when it ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from marconi_ext.errors import CheckFailedError
from marconi_ext.servers.engine_options import CPU_OPTIONS, environment, to_flags
from marconi_ext.servers.server import Server, ServerSpec

LEAK_CHECKS = {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1"}
LOG_ERRORS = ("Scheduler hit an exception", "memory leak", "checkpoints dropped", "sums are wrong")
START_S = 900.0  # on a machine with much other work
TAIL_LINES = 60


@contextmanager
def launched(
    model: Path, options: Mapping[str, Any], env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """The server, which may still be starting: see `Server.wait_until_healthy`.

    options: as of `sglang.Engine`, beside those that the CPU platform needs
    Raises: CheckFailedError at the end: it has died, or its log holds an error
    """
    flags = to_flags({**CPU_OPTIONS, "model_path": str(model), **options})
    variables = {**environment(cpu=True), **LEAK_CHECKS, **(env or {})}
    with Server(ServerSpec(tuple(flags), variables)) as server:
        server.launch()
        yield server
        server.require_alive()
        if found := [sign for sign in LOG_ERRORS if sign in server.log_text()]:
            raise CheckFailedError(f"{found} in the log:\n{server.log_tail(TAIL_LINES)}")
