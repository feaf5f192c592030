"""A real Prometheus that scrapes one server for a few seconds, and what it answers to PromQL."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from marconi_ext.servers.server import free_port

WANTED = "no prometheus on PATH; on Debian: apt-get install prometheus"


class Prometheus:
    """Queries over HTTP."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=20, trust_env=False)

    def query(self, expression: str) -> list[dict]:
        """The samples of an instant query. Fails on a query that Prometheus refuses."""
        answer = self.http.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", (expression, answer)
        return answer["data"]["result"]

    def wait_for(self, expression: str, timeout_s: float = 20) -> None:
        """Until the query has a sample."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                if self.query(expression):
                    return
            except (httpx.HTTPError, json.JSONDecodeError):
                pass  # it is just starting
            time.sleep(0.3)
        raise AssertionError(f"no sample of {expression} in {timeout_s} s")


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """Scrapes `target` (HOST:PORT) every half second. The program must be on PATH."""
    port = free_port()
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"},
        "scrape_configs": [{"job_name": "sglang", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.json").write_text(json.dumps(config))  # JSON is YAML
    command = [
        shutil.which("prometheus"),
        f"--config.file={folder / 'prometheus.json'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    process = subprocess.Popen(command)
    try:
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(20)
