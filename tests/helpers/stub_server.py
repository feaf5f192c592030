"""A stand-in for SGLang's HTTP server: an attention-only cache, made-up answers, and faults on demand.

Run as a script with SGLang's flags (all but --port are ignored). STUB_MODE chooses a fault for requests
whose prompt is longer than STUB_FROM tokens (default 0), each STUB_EVERY-th of them (default 1):
  ok, http-500, error-event, not-json, odd, odder, cut, torn, short, hang, reset, die, abort, busy (503 once a prompt),
  below-none, above-all (cached tokens), negative, fractional (token ids)
or for the start: die-at-start, never-healthy. STUB_LINE is printed at the start, STUB_CHILD=1 adds a child.
STUB_TTFT_S delays first tokens. Text prompts count a token a character. STUB_KEY is asked for as SGLang does.
STUB_INFO is what /server_info answers instead.
"""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import time

import numpy as np
from aiohttp import web

from marconi_ext.results.prefix_tree import PrefixTree

MODE = os.environ.get("STUB_MODE", "ok")
FROM = int(os.environ.get("STUB_FROM", "0"))
EVERY = int(os.environ.get("STUB_EVERY", "1"))
TTFT_S = float(os.environ.get("STUB_TTFT_S", "0"))
KEY = os.environ.get("STUB_KEY")
NO_CACHE = bool(os.environ.get("STUB_NO_CACHE"))
EXTENDED = bool(os.environ.get("STUB_LINE")) and "--enable-marconi" in sys.argv


class Cache:
    """The attention-only cache, and what the extension would count."""

    def __init__(self) -> None:
        self.tree = PrefixTree()
        self.requests = 0

    def match(self, prompt: np.ndarray) -> int:
        self.requests += 1
        return 0 if NO_CACHE else self.tree.lookup(prompt[:-1])[0]

    def insert(self, tokens: np.ndarray) -> None:
        if not NO_CACHE:
            self.tree.insert(tokens)


CACHE = Cache()
COUNT = itertools.count(1)
SEEN: set[bytes] = set()


def fault_of(prompt: np.ndarray) -> str:
    if len(prompt) <= FROM or next(COUNT) % EVERY:
        return "ok"
    if MODE != "busy":
        return MODE
    fault = "ok" if prompt.tobytes() in SEEN else "busy"
    SEEN.add(prompt.tobytes())
    return fault


async def answer(request: web.Request, prompt: np.ndarray, wanted: int, events) -> web.StreamResponse:
    """Stream an answer; events(n, cached, answer ids, finish reason or None, meta) gives the n-th event."""
    received_s = time.perf_counter()
    fault = fault_of(prompt)
    if fault == "http-500":
        return web.Response(status=500, text="out of luck")
    if fault == "busy":
        return web.Response(status=503, text="come back later", headers={"Retry-After": "0.01"})
    if fault == "die":
        os._exit(3)
    if fault == "reset":
        request.transport.abort()
        return web.Response()
    if fault == "hang":
        await asyncio.sleep(30)
    cached = CACHE.match(prompt)
    CACHE.insert(prompt)
    if TTFT_S:
        await asyncio.sleep(TTFT_S)
    ids = [2_000 + (int(prompt.sum()) + i) % 1_000 for i in range(wanted)]
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    if fault == "error-event":
        await response.write(b'data: {"error": {"message": "boom"}}\n\n')
        return response
    if fault == "not-json":
        await response.write(b"data: {oops\n\n")
        return response
    if fault in ("odd", "odder"):
        odd = {"output_ids": ["x"], "meta_info": {"completion_tokens": 1}}
        await response.write(b"data: " + json.dumps(odd if fault == "odd" else [odd]).encode() + b"\n\n")
        return response
    if fault == "short":
        ids = ids[:-1]
    if fault in ("negative", "fractional"):
        ids[-1] = -1 if fault == "negative" else 0.5
    cached = {"below-none": -5, "above-all": 10**6}.get(fault, cached)
    times = {"received_s": received_s, "sent_s": time.perf_counter()}
    for n in range(1, len(ids) + 1):
        last = n == len(ids)
        if last and fault == "torn":
            await response.write(b'data: {"output_ids": [1')
            request.transport.abort()
            return response
        if last and fault == "cut":
            return response
        reason = ("abort" if fault == "abort" else "length") if last else None
        event = events(n, cached, ids, reason, times)
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await asyncio.sleep(0)
    CACHE.insert(np.concatenate([prompt, np.array(ids[:-1], dtype=np.int32)]))
    await response.write(b"data: [DONE]\n\n")
    return response


async def generate(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    prompt = np.array(body["input_ids"], dtype=np.int32)

    def events(n, cached, ids, reason, times):
        meta = {"prompt_tokens": len(prompt), "cached_tokens": cached, "completion_tokens": n, **times}
        meta["finish_reason"] = reason and {"type": reason, "message": "no"}
        return {"output_ids": ids[:n], "meta_info": meta}

    return await answer(request, prompt, body["sampling_params"]["max_new_tokens"], events)


async def openai(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    chat = "messages" in body
    text = "".join(m["content"] for m in body["messages"]) if chat else body["prompt"]
    prompt = np.frombuffer(text.encode("utf-32-le"), dtype=np.int32)

    def events(n, cached, ids, reason, times):
        part = " word" if chat else " text"
        choice = {"finish_reason": reason, **({"delta": {"content": part}} if chat else {"text": part})}
        usage = {
            "prompt_tokens": len(prompt),
            "completion_tokens": n,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        return {"choices": [choice], "usage": usage if reason else None}

    return await answer(request, prompt, body["max_tokens"], events)


@web.middleware
async def key_asked_for(request: web.Request, handler) -> web.StreamResponse:
    allowed = request.headers.get("Authorization") == f"Bearer {KEY}" or request.path in (
        "/health",
        "/metrics",
    )
    return await handler(request) if allowed or not KEY else web.Response(status=401, text="Unauthorized")


async def server_info(request: web.Request) -> web.Response:
    if "STUB_INFO" in os.environ:
        return web.Response(text=os.environ["STUB_INFO"], content_type="application/json")
    marconi = {
        "version": "0.1.0",
        "stats": {
            "requests": CACHE.requests,
            "lost_tokens": {"evicted": 2 * CACHE.requests},
            "states": {"tail": 3},
            "evictions": [{"kind": "tail", "reason": "pool-full", "states": CACHE.requests}],
        },
    }
    return web.json_response(
        {"page_size": 1, "version": "stub", "internal_states": [{"marconi": marconi} if EXTENDED else {}]}
    )


async def metrics(request: web.Request) -> web.Response:
    return web.Response(text=f'# HELP x\nsglang:num_requests_total{{rank="0"}} {CACHE.requests}\nother 1\n')


async def models(request: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": "stub", "max_model_len": 100_000}]})


async def health(request: web.Request) -> web.Response:
    return web.Response(status=503 if MODE == "never-healthy" else 200)


async def flush(request: web.Request) -> web.Response:
    CACHE.tree = PrefixTree()
    return web.Response(text="flushed")


def serve(port: int) -> None:
    app = web.Application(client_max_size=2**30, middlewares=[key_asked_for])
    app.router.add_post("/generate", generate)
    app.router.add_post("/v1/completions", openai)
    app.router.add_post("/v1/chat/completions", openai)
    app.router.add_post("/flush_cache", flush)
    for path, page in (
        ("/health", health),
        ("/server_info", server_info),
        ("/metrics", metrics),
        ("/v1/models", models),
    ):
        app.router.add_get(path, page)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None, handle_signals=False)


if __name__ == "__main__":
    print("stub server starts with", *sys.argv[1:], flush=True)
    if MODE == "die-at-start":
        sys.exit("stub: error: unrecognized arguments: --enable-marconi")
    if EXTENDED:
        print(os.environ["STUB_LINE"], flush=True)
    if os.environ.get("STUB_CHILD"):
        print("child", subprocess.Popen(["sleep", "60"]).pid, flush=True)
    serve(int(sys.argv[sys.argv.index("--port") + 1]))
