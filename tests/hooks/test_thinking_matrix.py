"""Chats of thinking models through the real cache: cells of `bench/thinking_matrix.py`, and stock beside them."""

from __future__ import annotations

from pathlib import Path

import engineless_cache
import pytest
import thinking_matrix
from thinking_matrix import Cell, cell, headers

from marconi_ext.policies.answer_grid import GRIDS
from marconi_ext.policies.messages import from_tokenizer
from marconi_ext.traces.chat_template import TEMPLATES

KNOWN, PAGES = ("auto", "tokens", "none"), (1, 16)
TURNS = ("thinking", {"sessions": 24, "turns": 2, "at_once": 1, **thinking_matrix.SMALL})
LOOPS = ("tool-loops", {"sessions": 3, "tasks": (3, 3), "calls": (3, 6)})
REWRITTEN = ("thinking", {"sessions": 6, "turns": 5, "client": "rewrites", **thinking_matrix.SMALL})


@pytest.fixture(scope="module", autouse=True)
def settings() -> None:
    engineless_cache.publish_settings(thinking_matrix.CHUNK_TOKENS)


@pytest.fixture(autouse=True)
def traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thinking_matrix, "TRAFFIC", {"turns": TURNS, "loops": LOOPS, "rewritten": REWRITTEN})


def both(template: str, traffic: str, page: int, known: str) -> tuple[Cell, Cell]:
    """Ours, and stock's."""
    requests = thinking_matrix.requests_of(TEMPLATES[template], traffic)
    return (
        cell("marconi", TEMPLATES[template], traffic, page, known, requests),
        cell("stock-python", TEMPLATES[template], traffic, page, "none", requests),
    )


@pytest.mark.parametrize("template", ["qwen3.5", "qwen3-off", "nemotron-3", "kimi", "glm", "plain"])
@pytest.mark.parametrize(("page", "known"), [(1, "auto"), (16, "none")])
def test_turns_lose_nothing(template: str, page: int, known: str) -> None:
    ours, stock = both(template, "turns", page, known)
    assert ours.reused_late >= 99 and ours.reused > stock.reused, (ours, stock)
    if known == "auto":
        assert ours.reused >= 99, ours  # from the first session on


@pytest.mark.parametrize(("template", "page", "known"), [("qwen3.5", 1, "auto"), ("glm", 16, "tokens")])
def test_loops_lose_nothing_where_the_next_task_begins_either(template: str, page: int, known: str) -> None:
    ours, stock = both(template, "loops", page, known)
    assert ours.reused >= 99 and ours.reused_late >= stock.reused_late, (ours, stock)


@pytest.mark.parametrize("known", KNOWN)
def test_a_mark_alone_is_no_worse_than_nothing(known: str) -> None:
    """The place that it tells is some tokens before the one that lasts, which is learned all the same."""
    ours, _ = both("qwen3.5", "turns", 1, known)
    assert ours.lost_late == 0, ours


@pytest.mark.parametrize(("page", "known"), [(1, "auto"), (1, "none"), (16, "auto")])
@pytest.mark.parametrize("template", ["plain", "qwen3.5", "qwen3.5-kept", "nemotron-3-off"])
def test_rewritten_answers_lose_no_more_than_stock(template: str, page: int, known: str) -> None:
    ours, stock = both(template, "rewritten", page, known)
    assert ours.lost_late <= stock.lost_late, (ours, stock)
    if known == "auto":
        assert ours.lost <= stock.lost, (ours, stock)


def test_answers_without_their_end_lose_a_few_tokens_each() -> None:
    """At most two steps of the finest grid; thoughts and answers have 40 to 140."""
    ours, _ = both("qwen3.5-kept", "rewritten", 1, "auto")
    assert 0 < ours.lost_late / (6 * 4 / 2) < 2 * GRIDS[0]


def test_what_auto_finds_in_the_template() -> None:
    found = headers(TEMPLATES["qwen3.5"], "auto")
    assert {ending.dropped for ending in found.endings} == {2, 6}  # the opening; an empty block
    assert not headers(TEMPLATES["qwen3.5"], "none").headers


@pytest.mark.parametrize("file", sorted({template.file for template in TEMPLATES.values()}))
def test_a_tokenizer_with_the_template_tells_the_same(file: str, tmp_path: Path) -> None:
    """What a server asks, by way of transformers."""
    from id_tokenizer import write_tokenizer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(tmp_path, file, thinking_matrix.VOCABULARY))
    template = next(template for template in TEMPLATES.values() if template.file == file)
    assert from_tokenizer(tokenizer) == headers(template, "auto")
