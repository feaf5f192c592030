"""What Dynamo's own KV indexer promises of a server, beside what the server then reuses.

    pip install ai-dynamo-runtime          # into an environment of its own
    python bench/dynamo_indexer.py --dynamo /path/to/python [--sessions 12] [--turns 5] [--slots 14] [--json FILE]

A server on the CPU platform sends its KV events to `python -m dynamo.indexer`, which knows nothing of states: once
SGLang's events as they are, once `--marconi-events resumable`. Agents pause while all others speak, and there are fewer
slots than states that they need. Before each request the indexer is asked how many tokens the server holds of its
prompt. Promised less reused is what a router would count on and not get. No figure depends on the machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from checked_server import START_S, launched
from records import records_of, write
from server_pair import Asked, request

from marconi_ext.models.toy_model import ToyModel, write_model
from marconi_ext.servers.server import free_port

VOCABULARY, PAGE, MODEL = 4_096, 16, "small"
STREAMS = ("none", "resumable")
SETTLE_S = 0.2  # for events to arrive before the indexer is asked


@contextmanager
def indexer(python: str, events_port: int, log: Path) -> Iterator[httpx.Client]:
    """Dynamo's indexer, listening to one server."""
    port = free_port()
    worker = f"1=tcp://127.0.0.1:{events_port}"
    command = [python, "-m", "dynamo.indexer", "--port", str(port), "--block-size", str(PAGE)]
    command += ["--model-name", MODEL, "--threads", "1", "--workers", worker]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as http:
            deadline = time.monotonic() + 60
            while not _answers(http):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(
                        f"dynamo.indexer didn't start: {log.read_text(errors='replace')[-2000:]}"
                    )
                time.sleep(0.2)
            time.sleep(1)  # a subscription takes a moment
            yield http
    finally:
        process.terminate()
        process.wait(10)


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/health").status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def promised(http: httpx.Client, prompt: list[int]) -> int:
    """Tokens of the prompt that the indexer says the server holds."""
    reply = http.post("/query", json={"token_ids": prompt, "model_name": MODEL})
    reply.raise_for_status()
    return int(reply.json()["scores"].get("1", {}).get("0", 0))


def play(python: str, stream: str, options: argparse.Namespace, model: Path, log: Path) -> dict[str, Any]:
    """Columns of one stream."""
    rng = np.random.default_rng(0)
    draw = lambda tokens: rng.integers(0, VOCABULARY, int(tokens)).tolist()  # noqa: E731
    events_port = free_port()
    config = {"publisher": "zmq", "endpoint": f"tcp://*:{events_port}", "topic": "kv-events"}
    flags = {
        "enable_marconi": True,
        "marconi_events": stream,
        "kv_events_config": json.dumps(config),
        "page_size": PAGE,
        "max_mamba_cache_size": options.slots,
        "max_total_tokens": 60_000,
        "max_running_requests": 2,
        "skip_tokenizer_init": True,
        "skip_server_warmup": True,  # its events would go out before anybody listens
        "log_level": "warning",
    }
    counted = ("prompt_tokens", "promised_tokens", "reused_tokens", "too_much_tokens", "too_little_tokens")
    row = {"slots": options.slots, "stream": stream, "requests": 0, **dict.fromkeys(counted, 0)}
    with ExitStack() as stack:
        server = stack.enter_context(launched(model, flags))
        server.wait_until_healthy(START_S)
        # Before that nobody would answer its subscription, and it may give up.
        http = stack.enter_context(indexer(python, events_port, log))
        asked = Asked(server)
        systems = [draw(320) for _ in range(3)]
        histories = [[*systems[n % 3], *draw(rng.integers(20, 200))] for n in range(options.sessions)]
        for _turn in range(options.turns):
            for history in histories:
                time.sleep(SETTLE_S)
                said = min(promised(http, history), (len(history) - 1) // PAGE * PAGE)
                (answer,) = asked.generate(request(history, 12, {}))
                reused = answer.cached_tokens
                row["requests"] += 1
                row["prompt_tokens"] += len(history)
                row["promised_tokens"] += said
                row["reused_tokens"] += reused
                row["too_much_tokens"] += max(0, said - reused)
                row["too_little_tokens"] += max(0, reused - said)
                history += [*answer.output_ids, *draw(rng.integers(20, 120))]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dynamo", default=sys.executable, help="a Python with ai-dynamo-runtime")
    parser.add_argument("--sessions", type=int, default=12)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--slots", type=int, default=14)
    parser.add_argument("--json", type=Path, help="write records to this file; - for stdout")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", ToyModel())
        for stream in STREAMS:
            rows.append(play(options.dynamo, stream, options, model, Path(folder) / f"indexer-{stream}.log"))
            print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    if options.json is not None:
        write(records_of(rows, bench="dynamo_indexer", case=("slots",), provider="stream"), options.json)


if __name__ == "__main__":
    main()
