"""What is remembered for the next start is written a little at a time, on the scheduler's thread."""

from __future__ import annotations

import json
from array import array
from pathlib import Path

import pytest
from engineless_cache import Driver, publish_settings

from sglang_hooks.operator import memory
from sglang_hooks.operator.memory import TOKENS_A_STEP, ServerMemory

PREFIXES, LENGTH = 3, 2 * TOKENS_A_STEP + 500  # three steps each


def prefix(number: int) -> list[int]:
    return [number + 1, *((7 * number + i) % 50_000 for i in range(LENGTH - 1))]


@pytest.fixture
def driver() -> Driver:
    """Every prefix goes on in three ways."""
    publish_settings(64)
    tokens = 2 * PREFIXES * LENGTH
    driver = Driver("marconi", slots=60, tokens=tokens, context_tokens=LENGTH + 100, requests=2)
    for number in range(3 * PREFIXES):
        prompt = array("q", [*prefix(number % PREFIXES), 60_000 + number, *range(20)])
        driver.serve(number, prompt, array("q", [1, 2, 3]))
    return driver


def turns(written: ServerMemory) -> int:
    """Calls until the file that is due is complete."""
    written.due_s = 0.0
    count = 1
    written.write_if_due()
    while written.is_writing:
        written.write_if_due()
        count += 1
    return count


def lines(file: Path) -> list[list[int]]:
    return [json.loads(line)["input_ids"] for line in file.read_text().splitlines()]


def test_no_turn_writes_more_than_a_step(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "TURN_S", 0.0)
    file = tmp_path / "memory.jsonl"
    file.write_text("what the last start left\n")
    written = ServerMemory(driver.cache.mamba.records, file, 8)
    written.write_if_due()
    assert not written.is_writing, "nothing is due yet"
    written.due_s = 0.0
    written.write_if_due()
    assert file.read_text() == "what the last start left\n", "it is replaced when it is complete"
    assert turns(written) == 3 * PREFIXES, "one step was made, and the last turn replaces the file"
    assert lines(file) == [prefix(number) for number in range(PREFIXES)]


def test_what_has_not_changed_is_not_written_again(driver: Driver, tmp_path: Path) -> None:
    file = tmp_path / "memory.jsonl"
    written = ServerMemory(driver.cache.mamba.records, file, 8)
    turns(written)
    file.unlink()
    assert turns(written) == 1 and not file.exists()
    driver.cache.reset()
    assert turns(written) == 1 and not file.exists(), "an emptied cache doesn't wipe what was learned"


def test_a_prefix_that_goes_meanwhile_is_left_out(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "TURN_S", 0.0)
    file = tmp_path / "memory.jsonl"
    written = ServerMemory(driver.cache.mamba.records, file, 8)
    written.due_s = 0.0
    written.write_if_due()
    driver.cache.reset()
    turns(written)
    assert lines(file) == [prefix(0)], "the line that was begun is whole"
