"""What events cost the scheduler's thread: one long prompt after another through the real cache, without an engine.

    python bench/event_cost.py [--tokens 100000] [--pages 1,16]

ms of processor time a request beyond a cache that sends nothing: SGLang's KV events alone, `states`, `resumable`.
Encoding and sending happen on the publisher's thread, and aren't counted.
"""

from __future__ import annotations

import argparse
import random
import time
from array import array
from pathlib import Path
from typing import Any

import engineless_cache
from engineless_cache import Driver
from records import records_of, write
from sglang.srt.mem_cache.events import KVCacheEventRecorder

from sglang_hooks.observe.state_events import ResumableRecorder, StateEvents

MODES = ("none", "kv", "states", "resumable")


class Nowhere:
    def publish(self, batch: Any) -> None:
        """Dropped."""


def request_ms(mode: str, tokens: int, page: int, requests: int) -> float:
    """Mean processor time of a request (ms), its prompt new but for a shared half."""
    rng = random.Random(0)
    driver = Driver(
        "marconi", page_size=page, slots=40, tokens=tokens * 6, context_tokens=tokens + 256, requests=4
    )
    cache = driver.cache
    if mode in ("kv", "resumable"):
        cache.tree_core.kv_events = KVCacheEventRecorder(enabled=True, page_size=page)
    if mode == "resumable":
        cache.tree_core.kv_events = cache.mamba.events = ResumableRecorder(cache.tree_core.kv_events)
    if mode == "states":
        cache.mamba.events = StateEvents(cache, Nowhere())
    shared = array("q", (rng.randrange(50_000) for _ in range(tokens // 2)))
    spent = []
    for number in range(requests):
        prompt = shared + array("q", (rng.randrange(50_000) for _ in range(tokens - len(shared))))
        output = array("q", range(32))
        started = time.thread_time_ns()
        driver.serve(number, prompt, output)
        cache.tree_core.take_events()
        if cache.mamba.events is not None:
            cache.mamba.events.flush()
        spent.append(time.thread_time_ns() - started)
    return sum(spent[2:]) / len(spent[2:]) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--pages", default="1,16")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--json", type=Path, help="a file, or - for stdout")
    options = parser.parse_args()
    rows = []
    engineless_cache.publish_settings()
    for page in map(int, options.pages.split(",")):
        base = None
        for mode in MODES:
            took = request_ms(mode, options.tokens, page, options.requests)
            base = took if base is None else base
            rows.append({"page": page, "mode": mode, "request_ms": took})
            print(f"page {page:2} {mode:9} {took:8.2f} ms a request, {took - base:+8.2f} ms")

    if options.json:
        write(records_of(rows, bench="event_cost", case=("page",), provider="mode"), options.json)


if __name__ == "__main__":
    main()
