"""How long a page of a tree dump holds the scheduler's thread: a tree of many requests and one very long prompt.

    python bench/tree_dump_cost.py [--requests 6000] [--tokens 300000]

ms of processor time: to begin the dump, and the median, the 99th percentile and the longest of its pages, as they are
encoded for the answer; without token ids and with them. The least of three dumps.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from array import array
from pathlib import Path

import engineless_cache
from engineless_cache import Driver
from records import records_of, write

from marconi_ext.watch.sealed_tokens import Key
from sglang_hooks.observe.tree_dump import TreeWalk


def grown(requests: int, tokens: int) -> Driver:
    """A cache that has served one prompt of `tokens`, then `requests` short ones of 97 systems."""
    driver = Driver(
        "marconi",
        slots=requests * 3,
        tokens=tokens + requests * 40,
        context_tokens=tokens + 256,
        requests=4,
    )
    driver.serve(0, array("q", range(1, tokens + 1)), array("q", [1, 2, 3]))
    for number in range(1, requests):
        prompt = array("q", [number % 97, *range(tokens + number, tokens + number + 20)])
        driver.serve(number, prompt, array("q", [1, 2]))
    return driver


def pages_ms(driver: Driver, key: Key | None) -> dict[str, float]:
    """Columns of one dump."""
    began = time.thread_time()
    walk = TreeWalk(driver.cache, 1, key)
    begin_ms = 1e3 * (time.thread_time() - began)
    took: list[float] = []
    while not took or walk.page is None or walk.page["left"]:
        began = time.thread_time()
        json.dumps(walk.turn())
        took.append(1e3 * (time.thread_time() - began))
    took.sort()
    return {
        "pages": len(took),
        "begin_ms": begin_ms,
        "page_p50_ms": took[len(took) // 2],
        "page_p99_ms": took[len(took) * 99 // 100],
        "page_longest_ms": took[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=6_000)
    parser.add_argument("--tokens", type=int, default=300_000)
    parser.add_argument("--json", type=Path, help="write records to this file; - for stdout")
    options = parser.parse_args()
    engineless_cache.publish_settings()
    driver = grown(options.requests, options.tokens)
    gc.collect()
    gc.freeze()  # else a walk's few objects may begin a collection of everything that the bench has made
    rows = []
    for ids, key in (("without", None), ("sealed", Key.draw())):
        dumps = [pages_ms(driver, key) for _ in range(3)]
        rows.append({"ids": ids, **{name: min(dump[name] for dump in dumps) for name in dumps[0]}})
    if options.json is not None:
        write(records_of(rows, bench="tree_dump_cost", case=("ids",)), options.json)
        return
    print("token ids " + "".join(f"{name:>17}" for name in list(rows[0])[1:]))
    for row in rows:
        print(f"{row.pop('ids'):<10}" + "".join(f"{value:>17.2f}" for value in row.values()))


if __name__ == "__main__":
    main()
