"""`sglang serve --help` shows our flags, once; other command lines' parsers stay as they are."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import pytest

from sglang_hooks import serve_help


def test_the_real_help_has_our_flags() -> None:
    code = "import sys; sys.argv = ['sglang', 'serve', '--help']; from sglang.cli.main import main; main()"
    environment = {name: value for name, value in os.environ.items() if name != "SGLANG_PLATFORM"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    told = done.stdout.split("optional arguments:")[-1].split("options:")[-1]
    assert told.count("\n  --enable-marconi ") == 1 and "--marconi-checkpoints" in told, done.stderr[-2000:]


@pytest.mark.parametrize("argv", [["sglang", "serve", "--model-path", "x"], ["other", "--help"], ["sglang"]])
def test_nothing_is_changed_where_no_help_is_asked_for(argv: list[str]) -> None:
    before = argparse.ArgumentParser.format_help
    serve_help.show_flags_in_help(argv)
    assert argparse.ArgumentParser.format_help is before


def test_only_a_language_models_parser_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(argparse.ArgumentParser, "format_help", argparse.ArgumentParser.format_help)
    serve_help.show_flags_in_help(["sglang", "serve", "-h"])
    images, words = argparse.ArgumentParser(), argparse.ArgumentParser()
    words.add_argument(serve_help.SERVES_STATES)
    assert serve_help.OURS not in images.format_help()
    assert (
        words.format_help().count(f"\n  {serve_help.OURS} ")
        == words.format_help().count(f"\n  {serve_help.OURS} ")
        == 1
    )
