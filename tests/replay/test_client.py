"""Every way in which a request can fail is a result with a name, and no exception."""

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from marconi_ext.replay.client import Answer, GenerateClient
from marconi_ext.servers.server import Server, ServerSpec

STUB = (sys.executable, str(Path(__file__).parents[1] / "helpers" / "stub_server.py"))
PROMPT = np.arange(2_000, 2_040, dtype=np.int32)


@contextmanager
def running(tmp_path: Path, mode: str) -> Iterator[Server]:
    spec = ServerSpec((), {**os.environ, "STUB_MODE": mode}, STUB)
    with Server(spec, tmp_path / "server.log") as server:
        server.start(timeout_s=20)
        yield server


def ask(url: str, *, times: int = 1, timeout_s: float = 10) -> list[Answer]:
    async def go() -> list[Answer]:
        async with GenerateClient(url, timeout_s=timeout_s) as client:
            return [await client.generate(PROMPT, 5) for _ in range(times)]

    return asyncio.run(go())


def test_streams_tokens_and_reports_what_was_cached(tmp_path: Path) -> None:
    with running(tmp_path, "ok") as server:
        first, second = ask(server.url, times=2)
    assert (first.status, first.error, first.prompt_tokens, first.cached_tokens) == ("ok", "", 40, 0)
    assert second.cached_tokens == 39
    assert len(first.output_ids) == 5 and np.array_equal(first.output_ids, second.output_ids)
    assert first.sent_s < first.first_token_s <= first.end_s
    assert first.ttft_s > 0


@pytest.mark.parametrize(
    ("mode", "status", "message"),
    [
        ("http-500", "http", "HTTP 500: out of luck"),
        ("error-event", "malformed", "boom"),
        ("not-json", "malformed", "unexpected event"),
        ("odd", "malformed", "unexpected values"),
        ("odder", "malformed", "unexpected event"),
        ("torn", "malformed", "broke off"),
        ("cut", "malformed", "ended before the answer did"),
        ("short", "malformed", "4 tokens came, 5 were asked for"),
        ("abort", "aborted", "aborted by the server: no"),
        ("below-none", "malformed", "-5 cached of 40 prompt tokens"),
        ("above-all", "malformed", "1000000 cached of 40 prompt tokens"),
        ("negative", "malformed", "no token ids"),
        ("fractional", "malformed", "no token ids"),
        ("hang", "timeout", "no answer within 0.5 s"),
        ("reset", "connection", "Server disconnected"),
        ("die", "connection", "ServerDisconnectedError"),
    ],
)
def test_failures_are_results(tmp_path: Path, mode: str, status: str, message: str) -> None:
    with running(tmp_path, mode) as server:
        (answer,) = ask(server.url, timeout_s=0.5 if mode == "hang" else 10)
    assert (answer.status, message in answer.error) == (status, True), answer.error


def test_nobody_listening(tmp_path: Path) -> None:
    (answer,) = ask("http://127.0.0.1:9")
    assert answer.status == "connection" and answer.ttft_s is None
