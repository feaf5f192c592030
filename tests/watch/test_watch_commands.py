"""`marconi top` and `marconi tree` as a user calls them, against a server that answers as SGLang does."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from command import COMMAND, marconi
from processes import heed_interrupts

ENVIRONMENT = {**os.environ, "COLUMNS": "120", "LINES": "40", "TERM": "xterm"}


def test_top_once(server: Any, tmp_path: Path) -> None:
    server.stats.served(200, 150, 160, {"evicted": 10})
    server.metrics = 'sglang:num_running_reqs{tp_rank="0"} 3.0\nsglang:other 1.0\n'
    found = marconi("top", server.url, "--once", "--json", str(tmp_path / "top.jsonl"))
    assert found.returncode == 0, found.stderr
    assert "75.0" in found.stdout and "its state was evicted" in found.stdout
    (written,) = map(json.loads, (tmp_path / "top.jsonl").read_text().splitlines())
    assert written["total"]["hit_percent"] == 75 and written["running"] == 3 and written["last"] is None


def test_top_to_a_pipe_is_a_line_a_poll_until_interrupted(server: Any) -> None:
    run = subprocess.Popen(
        [*COMMAND, "top", server.url, "--interval", "0.2"],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=heed_interrupts,
    )
    try:
        lines = [run.stdout.readline() for _ in range(3)]
        run.send_signal(signal.SIGINT)
        assert run.wait(60) == 0
    finally:
        run.kill()
    assert all("had KV" in line for line in lines) and "requests/s" in lines[2]


def test_top_in_a_terminal_draws_and_ends_cleanly(server: Any) -> None:
    server.stats.served(200, 150, 160, {"evicted": 10})
    leader, follower = pty.openpty()
    run = subprocess.Popen(
        [*COMMAND, "top", server.url, "--interval", "0.2"],
        stdout=follower,
        env=ENVIRONMENT,
        preexec_fn=heed_interrupts,
    )
    try:
        seen = b""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and run.poll() is None:
            if seen.count(b"recurrent states") > 1 and b"hit rate" in seen:  # a read may end within a screen
                break
            if select.select([leader], [], [], 0.5)[0]:
                seen += os.read(leader, 65_536)
        run.send_signal(signal.SIGINT)
        assert run.wait(60) == 0
    finally:
        run.kill()
        os.close(follower)
        os.close(leader)
    assert b"its state was evicted" in seen and b"hit rate" in seen


@pytest.mark.parametrize("command", ["top", "tree"])
def test_a_server_without_the_extension(server: Any, command: str) -> None:
    server.live = False
    found = marconi(command, server.url, *(["--once"] if command == "top" else []))
    assert found.returncode == 1 and "--enable-marconi" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    "says",
    [
        "<html>hello</html>",
        "null",
        "[null]",
        "[true]",
        "3",
        "{}",
        '{"internal_states": [null]}',
        '{"internal_states": "none"}',
        '{"internal_states": [{"marconi": null}]}',
        '{"internal_states": [{"marconi": {"stats": {}}}]}',
    ],
)
def test_whatever_answers_gets_one_line(server: Any, tmp_path: Path, says: str) -> None:
    server.says = says
    (tmp_path / "prompt.jsonl").write_text('{"input_ids": [1, 2, 3]}')
    prompt = str(tmp_path / "prompt.jsonl")
    for command in (
        ("top", server.url, "--once"),
        ("tree", server.url),
        ("explain", server.url, "--prompt", prompt),
        ("pin", server.url),
        ("pin", server.url, prompt),
        ("warm", prompt, "--url", server.url),
    ):
        found = marconi(*command)
        assert found.returncode == 1 and found.stderr.startswith("marconi: "), command
        assert found.stderr.count("\n") == 1, found.stderr


def test_nobody_there_and_bad_urls() -> None:
    gone = marconi("top", "http://127.0.0.1:9", "--once")
    assert gone.returncode == 1 and "no server there" in gone.stderr
    assert marconi("top", "http://", "--once").returncode == 2


def test_a_key_is_asked_for_and_used(server: Any) -> None:
    server.api_key = "secret"
    refused = marconi("top", server.url, "--once")
    assert refused.returncode == 1 and "--api-key" in refused.stderr
    assert marconi("top", server.url, "--once", "--api-key", "secret").returncode == 0


def test_tree_is_dumped_without_tokens_and_disarmed(server: Any, tmp_path: Path) -> None:
    found = marconi("tree", server.url, "--json", str(tmp_path / "tree.json"))
    assert found.returncode == 0, found.stderr
    assert "2 nodes, 2 states, 500 tokens of KV, deepest 560 tokens" in found.stdout.replace("\n", " ")
    written = json.loads((tmp_path / "tree.json").read_text())
    assert len(written["ranks"][0]["nodes"]) == 3
    assert not any("tokens" in node for node in written["ranks"][0]["nodes"])
    assert server.asked == [1, 3, 0]


def test_tree_with_tokens_goes_to_a_file_only(server: Any, tmp_path: Path) -> None:
    assert marconi("tree", server.url, "--tokens").returncode == 2
    assert marconi("tree", server.url, "--tokens", "--json", str(tmp_path / "t.json")).returncode == 0
    assert json.loads((tmp_path / "t.json").read_text())["ranks"][0]["nodes"][1]["tokens"] == list(range(500))
    assert server.asked == [2, 3, 0]
