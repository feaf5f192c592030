"""`marconi replay` against a stand-in server: whatever the server does, the run ends and counts everything."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from command import COMMAND, marconi

from marconi_ext.results.folder import ResultsFolder, Status, find_results
from marconi_ext.servers.server import Server, ServerSpec

STUB = (sys.executable, str(Path(__file__).parents[1] / "helpers" / "stub_server.py"))
REQUESTS = 24


@contextmanager
def stub(tmp_path: Path, *flags: str, **environment: str) -> Iterator[Server]:
    spec = ServerSpec(flags, {**os.environ, **environment}, STUB)
    with Server(spec, tmp_path / "stub.log") as server:
        server.start(timeout_s=20)
        yield server


def arguments(url: str, out: Path, *options: str) -> list[str]:
    traffic = ("--trace", "synthetic:agent", "--limit", str(REQUESTS), "--max-output-tokens", "8")
    return ["replay", "--url", url, *traffic, "--out", str(out), *options]


def replay(url: str, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return marconi(*arguments(url, out, *options))


def results(out: Path):
    folder = ResultsFolder(out)
    run = folder.run()
    (repeat,) = folder.repeats(run.arms[0])
    return run, repeat.summary(), list(repeat.requests()), list(repeat.snapshots())


@pytest.mark.parametrize(
    ("endpoint", "history"), [("auto", "trace"), ("auto", "own"), ("completions", "own"), ("chat", "trace")]
)
def test_an_attention_only_server_reaches_the_ideal(tmp_path: Path, endpoint: str, history: str) -> None:
    out = tmp_path / "out"
    with stub(tmp_path, "--enable-marconi", STUB_LINE="x") as server:
        options = ("--concurrency", "4", "--endpoint", endpoint, "--history", history)
        found = replay(server.url, out, *options, "--json", str(tmp_path / "s.json"))
    assert found.returncode == 0, found.stderr
    run, summary, records, snapshots = results(out)
    assert (summary.requests, summary.answered, summary.by_status) == (
        REQUESTS,
        REQUESTS,
        {Status.OK: REQUESTS},
    )
    assert summary.ideal_hit_rate > 50 and summary.ttft_s.n == REQUESTS and summary.itl_s.n > 0
    if endpoint == "auto":  # the stub counts text in characters
        assert summary.hit_rate == summary.ideal_hit_rate and summary.state_limited_loss == 0
        assert summary.token_counts_differ == 0
    else:
        assert summary.token_counts_differ == REQUESTS
        assert 50 < summary.hit_rate <= 100 and "an estimate" in found.stdout
    assert run.finished and run.arms[0].status_line and run.timing.history == history
    assert summary.states_held == 3 and summary.evictions == REQUESTS == len(records)
    assert summary.server_loss_tokens == {"evicted": 2 * REQUESTS}
    assert snapshots[-1].metrics == {'sglang:num_requests_total{rank="0"}': REQUESTS}
    assert json.loads((tmp_path / "s.json").read_text())["summary"]["answered"] == REQUESTS
    assert all(r.ideal_tokens is not None and r.server_prompt_tokens for r in records)


def test_a_warm_server_is_told_and_a_flush_makes_it_cold(tmp_path: Path) -> None:
    with stub(tmp_path) as server:
        said = [
            replay(server.url, tmp_path / name, "--concurrency", "3", *more)
            for name, more in (("cold", ()), ("warm", ()), ("flushed", ("--flush",)))
        ]
    cold, warm, flushed = (results(tmp_path / name)[1] for name in ("cold", "warm", "flushed"))
    assert cold.warm_tokens == flushed.warm_tokens == cold.warm_requests == 0
    assert warm.warm_tokens > 0 and warm.warm_requests > 0
    assert warm.hit_rate > cold.hit_rate + 5
    assert warm.ideal_hit_rate <= cold.ideal_hit_rate and warm.hit_rate > warm.ideal_hit_rate + 5
    assert "--flush" in said[1].stdout and "before this run" in said[1].stdout
    assert "--flush" not in said[0].stdout + said[2].stdout


def test_a_server_that_is_no_model_server_is_asked_once(tmp_path: Path) -> None:
    asked: list[str] = []

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>welcome</html>")

        def log_message(self, *arguments) -> None:
            pass

    web = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        found = replay(f"http://127.0.0.1:{web.server_port}", tmp_path / "out")
    finally:
        web.shutdown()
    assert found.returncode == 1 and "neither an SGLang nor an OpenAI server" in found.stderr
    assert "<html>" not in found.stdout + found.stderr and sorted(asked) == ["/server_info", "/v1/models"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("endpoint", ["generate", "chat"])
def test_more_cached_tokens_than_the_prompt_is_no_hit_rate(tmp_path: Path, endpoint: str) -> None:
    with stub(tmp_path, STUB_MODE="above-all", STUB_EVERY="3") as server:
        assert (
            replay(server.url, tmp_path / "out", "--concurrency", "4", "--endpoint", endpoint).returncode == 1
        )
    _, summary, _, _ = results(tmp_path / "out")
    assert summary.by_status[Status.MALFORMED] == REQUESTS // 3 and 0 < summary.hit_rate <= 100


@pytest.mark.parametrize(
    ("mode", "status", "every"),
    [
        ("http-500", Status.HTTP, 3),
        ("torn", Status.MALFORMED, 3),
        ("cut", Status.MALFORMED, 3),
        ("not-json", Status.MALFORMED, 3),
        ("error-event", Status.MALFORMED, 3),
        ("abort", Status.ABORTED, 3),
        ("hang", Status.TIMEOUT, 3),
        ("reset", Status.CONNECTION, 2),
    ],
)
def test_faults_are_counted_and_the_run_goes_on(
    tmp_path: Path, mode: str, status: Status, every: int
) -> None:
    out = tmp_path / "out"
    with stub(tmp_path, STUB_MODE=mode, STUB_EVERY=str(every)) as server:
        options = ("--concurrency", "6", "--timeout", "1", "--retries", "0")
        found = replay(server.url, out, *options)
    assert found.returncode == 1 and "requests weren't answered" in found.stderr, found.stderr
    run, summary, records, _ = results(out)
    assert summary.by_status == {Status.OK: REQUESTS - REQUESTS // every, status: REQUESTS // every}
    assert len(records) == REQUESTS and all(r.error for r in records if r.status != Status.OK)
    assert run.finished


def test_what_was_refused_once_is_sent_again_in_plain_sight(tmp_path: Path) -> None:
    with stub(tmp_path, STUB_MODE="busy") as server:
        found = replay(server.url, tmp_path / "out", "--concurrency", "4")
    assert found.returncode == 0, found.stderr
    _, summary, records, _ = results(tmp_path / "out")
    assert summary.answered == summary.retries == summary.retried_requests == REQUESTS
    assert all(0 < r.retry_s < r.ttft_s for r in records)


def test_a_killed_server_ends_the_run_with_all_counted(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with stub(tmp_path, STUB_TTFT_S="0.2") as server:
        options = ("--concurrency", "2", "--give-up-after", "4", "--retries", "1")
        process = subprocess.Popen(
            [*COMMAND, *arguments(server.url, out, *options)], stderr=subprocess.PIPE, text=True
        )
        wait_for_lines(out, 3)
        server.stop()
        assert process.wait(timeout=30) == 1
    assert "gave up after 4 failures in a row" in process.stderr.read()
    run, summary, records, _ = results(out)
    assert sum(summary.by_status.values()) == len(records) == REQUESTS
    assert summary.by_status[Status.UNSENT] > 0 and summary.by_status[Status.OK] >= 3
    assert run.error.startswith("gave up") and not run.finished


def test_ctrl_c_writes_what_is_there(tmp_path: Path) -> None:
    """Each fourth request hangs: two at a time, all others are answered until both places are taken."""
    out = tmp_path / "out"
    with stub(tmp_path, STUB_MODE="hang", STUB_EVERY="4") as server:
        process = subprocess.Popen([*COMMAND, *arguments(server.url, out, "--concurrency", "2")])
        wait_for_lines(out, 6)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    _, summary, records, _ = results(out)
    assert summary.interrupted and len(records) == REQUESTS
    assert summary.by_status == {Status.OK: 6, Status.CANCELLED: 2, Status.UNSENT: REQUESTS - 8}


def wait_for_lines(out: Path, count: int) -> None:
    """Until so many requests are on disk, while the run goes on."""
    deadline = time.monotonic() + 30
    file = out / "server" / "0" / "requests.jsonl"
    while not file.exists() or len(file.read_text().splitlines()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_key_is_asked_for_used_and_written_nowhere(tmp_path: Path, monkeypatch) -> None:
    out, key = tmp_path / "out", "sesame-4711"
    with stub(tmp_path, "--enable-marconi", STUB_LINE="x", STUB_KEY=key) as server:
        refused = replay(server.url, out)
        assert refused.returncode == 1 and "give the server's key with --api-key" in refused.stderr
        refused = replay(server.url, out, "--api-key", "wrong")
        assert (
            refused.returncode == 1 and "doesn't take this --api-key" in refused.stderr and not out.exists()
        )
        found = replay(server.url, out, "--api-key", key, "--concurrency", "4", "--flush", "--json", "-")
        assert found.returncode == 0, found.stderr
        monkeypatch.setenv("MARCONI_API_KEY", key)
        assert replay(server.url, tmp_path / "2", "--endpoint", "chat", "--concurrency", "4").returncode == 0
    run, summary, _, snapshots = results(out)
    assert (
        summary.answered == REQUESTS
        and snapshots[-1].marconi
        and "--api-key ***" in run.provenance["command"]
    )
    shown = json.loads(found.stdout)  # nothing else is on stdout
    assert shown["summary"]["answered"] == REQUESTS and shown["run"]["finished"]
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 6 and not any(key in text for text in (*written, found.stdout, found.stderr))


def test_where_nothing_is_answered_no_hint_is_given(tmp_path: Path) -> None:
    with stub(tmp_path, STUB_MODE="http-500") as server:
        found = replay(server.url, tmp_path / "out", "--retries", "0", "--give-up-after", "3")
    assert found.returncode == 1 and "--enable-cache-report" not in found.stdout
    assert "HTTP 500: out of luck" in found.stderr


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ('{"page_size": "many"}', "odd page_size"),
        ('{"page_size": -1}', "odd page_size"),
        ('{"internal_states": [null]}', "odd internal_states.0"),
        ('{"internal_states": {"marconi": 1}}', "odd internal_states"),
        ('{"model_path": ["a"]}', "odd model_path"),
        ('{"context_length": {}}', "odd context_length"),
    ],
)
def test_a_server_that_says_odd_things_is_no_traceback(tmp_path: Path, info: str, message: str) -> None:
    with stub(tmp_path, STUB_INFO=info) as server:
        found = replay(server.url, tmp_path / "out")
    assert found.returncode == 1 and message in found.stderr and "Traceback" not in found.stderr
    assert not (tmp_path / "out").exists()


def test_bad_usage_names_the_flag(tmp_path: Path) -> None:
    for options, message in (
        (("--endpoint", "magic"), "--endpoint magic"),
        (("--scale", "0"), "--scale 0"),
        (("--sessions-per-s", "0"), "--sessions-per-s"),
        (("--trace", "synthetic:holiday"), "synthetic:holiday"),
        (("--url", "http://[::1"), "--url http://[::1"),
        (("--api-key", "two\nlines"), "--api-key: holds characters"),
        (("--history", "mine"), "--history mine"),
        (("--speed", "0"), "--speed 0"),
        (("--speed", "inf"), "--speed inf"),
        (("--max-rate", "nan"), "--max-rate nan"),
        (("--json", "/nowhere/x.json"), "--json /nowhere/x.json"),
    ):
        found = replay("http://127.0.0.1:9", tmp_path / "out", *options)
        assert found.returncode == 2 and message in found.stderr, found.stderr
    found = replay("http://127.0.0.1:9", tmp_path / "out")
    assert found.returncode == 1 and "nobody answers there" in found.stderr
    assert not (tmp_path / "out").exists()
    with stub(tmp_path) as server:
        assert replay(server.url, tmp_path / "out", "--concurrency", "4").returncode == 0
        found = replay(server.url, tmp_path / "out")
    assert found.returncode == 2 and "holds results already" in found.stderr
    assert [folder.path for folder in find_results(tmp_path / "out")] == [tmp_path / "out"]
