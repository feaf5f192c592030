"""What `marconi explain` says of an explanation, and what it reads as a prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from marconi_ext.errors import BadInputError
from marconi_ext.watch.explain_view import sentences
from marconi_ext.watch.prompts import read_prompts

TOLD = {
    "request": "a",
    "prompt_tokens": 660,
    "hit_tokens": 379,
    "kv_tokens": 500,
    "divergence": {"at_token": 500, "other_ways": 1},
    "nearest_state": {"depth_tokens": 379, "kind": "boundary"},
    "lost_tokens": 121,
    "lost_flops": 2e12,
    "lost": {"evicted": 121},
    "without_state": [
        {
            "depth_tokens": 500,
            "kind": "branch",
            "what": "evicted",
            "why": "a more valuable state took its slot",
            "requests_ago": 3,
        }
    ],
    "wanted": [{"depth_tokens": 500, "kind": "branch", "outcome": "saved"}],
}


def test_every_fact_is_said() -> None:
    text = "\n".join(sentences(TOLD))
    for part in (
        "379 reused, 281 prefilled",
        "Token 500 is the first new one",
        "121 tokens (2e+12 FLOPs)",
        "3 requests ago",
        "a more valuable state took its slot",
        "Wanted at token 500",
    ):
        assert part in text
    nothing = TOLD | {
        "hit_tokens": 0,
        "kv_tokens": 0,
        "nearest_state": None,
        "lost_tokens": 0,
        "lost": {},
        "without_state": [],
    }
    assert "holds nothing that begins like it" in "\n".join(sentences(nothing))


class Tokenizer:
    """A template that puts marks around messages."""

    def tokens_of(self, body: dict) -> list[int]:
        if "prompt" in body:
            return [ord(c) for c in body["prompt"]]
        return [ord(c) for m in body["messages"] for c in f"<{m['role']}>{m['content']}"]


def test_prompts_of_each_kind(tmp_path: Path) -> None:
    lines = [
        {"input_ids": [1, 2, 3], "extra_key": "a", "name": "ids"},
        {"text": "hi"},
        {"messages": [{"role": "system", "content": "be brief"}]},
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    ids, text, chat = read_prompts(path)
    assert ids.tokens(Tokenizer()) == [1, 2, 3] and ids.namespace == {"extra_key": "a"} and ids.name == "ids"
    assert text.tokens(Tokenizer()) == [104, 105]
    # of a chat's prefix, all that the template puts before what a user says next
    assert "".join(map(chr, chat.tokens(Tokenizer(), as_prefix=True))) == "<system>be brief<user>"
    (tmp_path / "plain.txt").write_text("hello\nworld")
    (plain,) = read_prompts(tmp_path / "plain.txt")
    assert plain.fields == {"text": "hello\nworld"}


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "no JSON"),
        ("{}", "one of"),
        ('{"text": "a", "input_ids": [1]}', "one of"),
        ('{"text": "a", "x": 1}', "'x'"),
        ('{"input_ids": [-1]}', "input_ids"),
        ('{"text": ""}', "text"),
        ('{"messages": []}', "messages"),
        ("", "no prompt"),
    ],
)
def test_bad_prompts_are_named(tmp_path: Path, line: str, named: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(line)
    with pytest.raises(BadInputError, match=named):
        read_prompts(path)
