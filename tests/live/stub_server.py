"""A stand-in for SGLang's HTTP server: an attention-only cache, made-up answers, and faults on demand.

Run as a script with SGLang's flags (all but --port are ignored). STUB_MODE chooses a fault for requests
whose prompt is longer than STUB_FROM tokens (default 0):
  ok, http-500, error-event, not-json, cut, short, hang, reset, die, abort
or for the start: die-at-start, never-healthy. STUB_LINE is printed at the start, STUB_CHILD=1 adds a child.
"""

import json
import os
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

import numpy as np

from marconi_ext.prefix_tree import PrefixTree

MODE = os.environ.get("STUB_MODE", "ok")
FROM = int(os.environ.get("STUB_FROM", "0"))


class Cache:
    """The attention-only cache, safe for the server's threads."""

    def __init__(self) -> None:
        self.tree, self.lock = PrefixTree(), Lock()

    def match(self, prompt: np.ndarray) -> int:
        with self.lock:
            return self.tree.lookup(prompt[:-1])[0]

    def insert(self, tokens: np.ndarray) -> None:
        with self.lock:
            self.tree.insert(tokens)


CACHE = Cache()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/health":
            return self.reply(503 if MODE == "never-healthy" else 200, b"")
        if self.path == "/server_info":
            return self.reply(200, json.dumps({"page_size": 1}).encode())
        return self.reply(404, b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/flush_cache":
            CACHE.tree = PrefixTree()
            return self.reply(200, b"flushed")
        return self.generate(json.loads(body))

    def generate(self, body: dict) -> None:
        prompt = np.array(body["input_ids"], dtype=np.int32)
        fault = MODE if len(prompt) > FROM else "ok"
        if fault == "http-500":
            return self.reply(500, b"out of luck")
        if fault == "die":
            os._exit(3)
        if fault == "reset":
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        if fault == "hang":
            time.sleep(30)
        cached = CACHE.match(prompt)
        CACHE.insert(prompt)
        wanted = body["sampling_params"]["max_new_tokens"]
        answer = [2_000 + (int(prompt.sum()) + i) % 1_000 for i in range(wanted)]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        if fault == "error-event":
            return self.event({"error": {"message": "boom"}})
        if fault == "not-json":
            return self.line("data: {oops")
        if fault == "short":
            answer = answer[:-1]
        for n in range(1, len(answer) + 1):
            last = n == len(answer)
            if last and fault == "cut":
                return None
            reason = (
                ({"type": "abort", "message": "no"} if fault == "abort" else {"type": "length"})
                if last
                else None
            )
            meta = {
                "prompt_tokens": len(prompt),
                "cached_tokens": cached,
                "completion_tokens": n,
                "finish_reason": reason,
            }
            self.event({"output_ids": answer[:n], "meta_info": meta})
        CACHE.insert(np.concatenate([prompt, np.array(answer[:-1], dtype=np.int32)]))
        return self.line("data: [DONE]")

    def event(self, value: dict) -> None:
        self.line("data: " + json.dumps(value))

    def line(self, text: str) -> None:
        self.wfile.write(f"{text}\n\n".encode())
        self.close_connection = True

    def reply(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    print("stub server starts with", *sys.argv[1:], flush=True)
    if MODE == "die-at-start":
        sys.exit("stub: error: unrecognized arguments: --enable-marconi")
    if os.environ.get("STUB_LINE") and "--enable-marconi" in sys.argv:
        print(os.environ["STUB_LINE"], flush=True)
    if os.environ.get("STUB_CHILD"):
        print("child", subprocess.Popen(["sleep", "60"]).pid, flush=True)
    port = int(sys.argv[sys.argv.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
