"""A server is started on its own port, watched, and always stopped with its children."""

import os
import sys
import time
from pathlib import Path

import pytest
from processes import alive

from marconi_ext.servers.engine_options import environment
from marconi_ext.servers.server import Server, ServerError, ServerSpec
from marconi_ext.watch.server import NotLiveError, WatchedServer

STUB = (sys.executable, str(Path(__file__).parents[1] / "helpers" / "stub_server.py"))


def stub(tmp_path: Path, **environment: str) -> Server:
    return Server(ServerSpec((), {**os.environ, **environment}, STUB), tmp_path / "server.log")


def test_starts_flushes_and_stops_with_its_children(tmp_path: Path) -> None:
    with stub(tmp_path, STUB_CHILD="1") as server:
        server.start(timeout_s=20)
        assert server.info()["page_size"] == 1
        server.flush_cache()
        child = int(server.log_text().split("child ")[1].split()[0])
        assert alive(child)
    assert not alive(child)
    server.stop()  # again is harmless


def test_a_proxy_of_the_users_is_not_asked(tmp_path: Path, monkeypatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with stub(tmp_path) as server:
        server.start(timeout_s=20)
        assert server.info()["page_size"] == 1
        server.flush_cache()
        with pytest.raises(NotLiveError):  # it answers, so it was reached
            WatchedServer(server.url).poll()


def test_a_server_that_ends_at_once_shows_its_log(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"exit code 1(.|\n)*unrecognized arguments"):
        stub(tmp_path, STUB_MODE="die-at-start").start(timeout_s=20)


def test_a_server_that_never_gets_healthy_is_stopped(tmp_path: Path) -> None:
    server = stub(tmp_path, STUB_MODE="never-healthy")
    waits: list[float] = []
    began = time.monotonic()
    with pytest.raises(ServerError, match=r"not healthy after 5 s(.|\n)*stub server starts"):
        server.start(timeout_s=5, on_wait=waits.append)
    assert waits and time.monotonic() - began < 20
    with pytest.raises(ServerError):
        server.require_alive()


def test_a_missing_program_is_no_server(tmp_path: Path) -> None:
    spec = ServerSpec((), dict(os.environ), (sys.executable, "-m", "no_such_module"))
    with pytest.raises(ServerError, match="no_such_module"):
        Server(spec, tmp_path / "server.log").start(timeout_s=20)


@pytest.mark.parametrize(
    ("variables", "module"),
    [
        (environment(cpu=True), "marconi_ext.servers.forking_launcher"),
        (environment(cpu=True) | {"MARCONI_CPU_MODE": "interpreter"}, "sglang.launch_server"),
        (environment(cpu=False), "sglang.launch_server"),
    ],
    ids=["cpu", "interpreter", "gpu"],
)
def test_processes_are_forked_on_the_cpu_platform(variables: dict[str, str], module: str) -> None:
    assert Server(ServerSpec((), variables)).arguments[:3] == [sys.executable, "-m", module]
