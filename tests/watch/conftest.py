"""An HTTP server that answers as SGLang's control endpoints do, with what a test wants."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import numpy as np
import pytest

from marconi_ext.watch.sealed_tokens import KEY_ARGUMENTS, NEXT, Key
from sglang_hooks.stats import CacheStats

SLOTS = {"pool": 20, "free": 10, "cached": 8, "held": 1, "unaccounted": 1}
NODES = [
    {"id": 0, "parent": None, "depth_tokens": 0, "edge_tokens": 0, "kv": "device", "state": None},
    {"id": 1, "parent": 0, "depth_tokens": 500, "edge_tokens": 500, "kv": "device", "state": "device"},
    {"id": 2, "parent": 1, "depth_tokens": 560, "edge_tokens": 60, "kv": None, "state": "host"},
]


class FakeServer:
    """Counts with the real CacheStats; live: whether the extension is there; says: in place of every answer."""

    def __init__(self) -> None:
        self.stats = CacheStats()
        self.live = True
        self.says: str | None = None
        self.metrics: str | None = None
        self.api_key: str | None = None
        self.asked: list[int] = []
        self.key: Key | None = None
        self.url = ""

    def section(self) -> dict[str, Any]:
        section = {
            "version": "0.1.0",
            "live": True,
            "config": {"checkpoints": ["branch"]},
            "counters": {},
            "slots": dict(SLOTS),
            "policy": {"name": "lru", "parameters": {}},
            "stats": self.stats.snapshot(),
        }
        if self.asked and self.asked[-1]:
            nodes = [
                {"kind": None, "age_ticks": None, "access": 1, "kv_locks": 0, "state_locks": 0} | node
                for node in NODES
            ]
            page = 1 + self.asked.count(3)
            begin, end = (0, 2) if page == 1 else (2, 3)  # two pages
            section["tree"] = {"dump": 1, "page": page, "left": 3 - end, "tick": 3, "page_tokens": 1}
            section["tree"] |= {"nodes": nodes[begin:end], "tokens": []}
            if self.key is not None and page == 1:
                tokens = np.arange(500)
                section["tree"]["tokens"] = [{"id": 1, "from": 0, "sealed": self.key.seal(tokens, "1.0")}]
        return section

    def info(self) -> dict[str, Any]:
        state: dict[str, Any] = {"last_gen_throughput": 12.5}
        if self.live:
            state["marconi"] = self.section()
        return {"version": "0.5.23", "served_model_name": "toy", "internal_states": [state]}


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def answer(self, status: int, text: str) -> None:
            status, text = (status, text) if fake.says is None else (200, fake.says)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def do_GET(self) -> None:
            if fake.api_key and self.headers.get("Authorization") != f"Bearer {fake.api_key}":
                self.answer(401, "{}")
            elif self.path == "/server_info":
                self.answer(200, json.dumps(fake.info()))
            elif self.path.startswith("/metrics") and fake.metrics is not None:
                self.answer(200, fake.metrics)
            else:
                self.answer(404, "not here")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if fake.live and fake.says is None:
                asked = body["server_args"]
                fake.asked.append(asked["marconi_tree"])
                if asked["marconi_tree"] != NEXT:
                    fake.key = Key.of([asked.get(name) for name in KEY_ARGUMENTS])
            self.answer(200, json.dumps([fake.live]))

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{http.server_port}"
    thread = Thread(target=http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield fake
    http.shutdown()
    http.server_close()
