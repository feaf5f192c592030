"""The bar of a replay says what is reused."""

from types import SimpleNamespace

import numpy as np

from marconi_ext.replay import progress as progress_module
from marconi_ext.replay.client import Answer
from marconi_ext.replay.progress import ReplayProgress
from marconi_ext.replay.sender import Record


def test_reuse_is_counted_in_the_servers_tokens() -> None:
    answer = Answer("ok", "", 0.0, 0.1, 0.2, prompt_tokens=300, cached_tokens=150)
    with ReplayProgress() as progress:
        progress.open_bar("chat", 1)
        progress.record(Record("s", 0, np.zeros(100, np.int32), answer))
        assert progress.live_text(None).startswith("50.0 % reused")


def test_without_a_terminal_lines_tell_the_progress(capsys, monkeypatch) -> None:
    answer = Answer("ok", "", 0.0, 0.1, 0.2, prompt_tokens=300, cached_tokens=150)
    record = Record("s", 0, np.zeros(300, np.int32), answer)
    now_s = [0.0]
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    with ReplayProgress() as progress:
        progress.expect(20)
        progress.wait("starting marconi")
        progress.open_bar("marconi, agent, repeat 2 of 3", 10)
        for _ in range(10):
            now_s[0] += 10
            progress.record(record, 4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].strip() == "starting marconi"
    assert len(lines) == 1 + 4  # after 30, 60, 90 and 100 s
    assert all("marconi, agent, repeat 2 of 3: " in line and "a second" in line for line in lines[1:])
    assert "3 of 10 requests, 0.1 a second, 70 s left" in lines[1] and "50.0 % reused" in lines[1]
    assert "10 of 10 requests" in lines[-1] and "all runs: 50 %" in lines[-1]
