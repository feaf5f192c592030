"""`marconi replay` with text against the real server's OpenAI endpoints: the same prefixes are reused as with ids."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import LiveServer, running

from marconi_ext.models.toy_model import ToyModel, write_model

pytestmark = pytest.mark.engine

SESSIONS, TURNS = 3, 4
SYSTEM = "You help the crew of a lighthouse. " * 30


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    model = write_model(tmp_path_factory.mktemp("text") / "hybrid", ToyModel())
    with running(model, skip_tokenizer_init=False, enable_cache_report=True, chat_template="chatml") as live:
        yield live


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations of plain words over one system prompt, a line each."""
    lines = []
    for session in range(SESSIONS):
        messages = [{"role": "system", "content": SYSTEM}]
        for turn in range(TURNS):
            question = f"Ship {session} asks for the {turn + 2}th time how far the light is seen. " * 4
            messages += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": f"As far as {turn + 20} miles on a clear night."},
            ]
        lines.append(json.dumps({"session_id": f"ship-{session}", "messages": messages}))
    path = tmp_path_factory.mktemp("trace") / "chats.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_text_reuses_its_prefixes(server: LiveServer, trace: Path, tmp_path: Path, endpoint: str) -> None:
    options = {
        "--url": server.server.url,
        "--trace": str(trace),
        "--endpoint": endpoint,
        "--concurrency": "1",
        "--max-output-tokens": "6",
        "--out": str(tmp_path / "out"),
        "--json": str(tmp_path / "summary.json"),
    }
    command = [sys.executable, "-c", "from marconi_ext.cli import main; main()", "replay", "--flush"]
    done = subprocess.run(
        [*command, *(word for pair in options.items() for word in pair)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())["summary"]
    assert summary["answered"] == summary["requests"] == SESSIONS * TURNS
    # The ideal is of our ids. The server makes its own of the text: where a prompt ends, they may differ by one.
    assert 50 < summary["hit_rate"] <= summary["ideal_hit_rate"] + 5, summary
