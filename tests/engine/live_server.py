"""A real SGLang server for tests: started once a module, asked over HTTP, checked for leaks when it goes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from checked_server import START_S, launched
from server_pair import Answer, Asked, request

from marconi_ext.servers.engine_options import CPU_OPTIONS
from marconi_ext.servers.server import Server

PAGE_CHECKS = {"SGLANG_CHECK_KV_PAGE_INVARIANTS": "1"}  # a sort of the KV pool a step: for small pools only
RANK_CHECKS = {"SGLANG_ENABLE_RANK_CONSENSUS_CHECKER": "1"}  # the server ends where ranks decide differently
OPTIONS = {
    **CPU_OPTIONS,
    "max_total_tokens": 100_000,
    "max_mamba_cache_size": 4_000,
    "max_running_requests": 16,
    "skip_tokenizer_init": True,
    "skip_server_warmup": True,  # its requests would count
    "log_level": "warning",
}


class LiveServer:
    """A running server and what tests ask of it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._asked = Asked(server)
        self.http = self._asked.http

    def generate(self, input_ids: Sequence[int], answer_tokens: int, **sampling: object) -> Answer:
        """Greedy, with logprobs; `sampling` replaces sampling parameters."""
        return self._asked.generate(request(input_ids, answer_tokens, sampling))[0]

    def generate_all(self, requests: Sequence[tuple[Sequence[int], int]], concurrency: int) -> list[Answer]:
        """Answers in the order of the requests, `concurrency` of which are open at a time."""
        with ThreadPoolExecutor(concurrency) as pool:
            return list(pool.map(lambda request: self.generate(*request), requests))

    def marconi(self, rank: int = 0) -> dict | None:
        """The extension's section of /server_info; None where it isn't live."""
        return self.server.info()["internal_states"][rank].get("marconi")

    def assert_nothing_leaked(self) -> dict:
        """Wait until idle, then free + cached = pool. Returns the census."""
        deadline = time.monotonic() + 10
        while True:
            slots = self.marconi()["slots"]
            if slots["unaccounted"] == slots["held"] == 0:
                return slots
            assert time.monotonic() < deadline, slots
            time.sleep(0.2)


def plugin_environment(folder: Path, module: str) -> dict[str, str]:
    """Variables that make SGLang load tests/engine/MODULE_plugin/MODULE.py. Writes metadata to `folder`."""
    metadata = folder / f"{module}-0.0.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 0.0.0\n")
    (metadata / "entry_points.txt").write_text(f"[sglang.srt.plugins]\n{module} = {module}:register\n")
    places = [str(folder), str(Path(__file__).parent / f"{module}_plugin"), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(places)}


@contextmanager
def running(
    model: Path, *, marconi: bool = True, env: dict[str, str] | None = None, **options: object
) -> Iterator[LiveServer]:
    """Start a server on the CPU platform; its log must hold no error when it ends."""
    with launched(model, {**OPTIONS, "enable_marconi": marconi, **options}, env) as server:
        server.wait_until_healthy(START_S)
        yield LiveServer(server)
