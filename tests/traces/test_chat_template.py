"""Templates in miniature: each leaves the last prompt where its family's own does."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from marconi_ext.errors import BadInputError
from marconi_ext.results.prefix_tree import common_prefix
from marconi_ext.traces.chat_template import MARKERS, TEMPLATES, find_template, pieces
from marconi_ext.traces.id_text import IdText
from marconi_ext.traces.templated import Said, without_thoughts, written_calls


def call(name: str) -> list[dict]:
    return [{"function": {"name": name, "arguments": "{}"}}]


CONVERSATION: list[Said] = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "q1"},
    {"role": "assistant", "content": "a1", "reasoning_content": "r1"},
    {"role": "user", "content": "q2"},
    {"role": "assistant", "content": "", "reasoning_content": "r2", "tool_calls": call("f")},
    {"role": "tool", "content": "found"},
    {"role": "assistant", "content": "", "reasoning_content": "r3", "tool_calls": call("g")},
    {"role": "tool", "content": "more"},
    {"role": "assistant", "content": "a2", "reasoning_content": "r4"},
    {"role": "user", "content": "q3"},
    {"role": "assistant", "content": "a3", "reasoning_content": "r5"},
]
# What the last prompt and its answer have behind the place where the next prompt leaves them: of the second turn
# (a, b), of the calls of its loop (c), and of the turn after it (d); "" where all is repeated.
LEFT = {
    "qwen3": ("<think>\nr1", "", "<think>\nr2"),
    "qwen3-off": ("<think>\n\n</think>\n\na1", "<think>\n\n</think>\n\n\n<tool", "<think>\n\n</think>\n\na2"),
    "qwen3.5": ("<think>\nr1", "", "<think>\nr2"),
    "qwen3.5-off": ("<think>\n\n</think>\n\na1", "", "<think>\n\n</think>\n\n\n\n<tool"),
    "qwen3.5-kept": ("", "", ""),
    "nemotron-3": ("\nr1", "", "\nr2"),
    "nemotron-3-off": ("", "", ""),
    "kimi": ("r1</think>", "", "r2</think>"),
    "glm": ("r1</think>", "", "r2</think>"),
    "glm-off": ("", "", ""),
    "plain": ("", "", ""),
}


def said(name: str) -> list[Said]:
    thinks = TEMPLATES[name].thinks
    return [message if thinks else without_thoughts(message) for message in CONVERSATION]


@pytest.mark.parametrize("name", TEMPLATES)
def test_where_the_next_prompt_leaves_the_last_one(name: str) -> None:
    calls = list(written_calls(TEMPLATES[name], said(name)))
    assert len(calls) == 5
    left = []
    for (prompt, answer), (following, _) in pairwise(calls):
        left.append((prompt + answer)[common_prefix(np.array([*prompt, *answer]), np.array([*following])) :])
    second, loop, after = LEFT[name]
    for found, wanted in zip(left, (second, loop, loop, after), strict=True):
        assert found.startswith(wanted) and bool(found) == bool(wanted), (found, wanted)


def test_a_whole_prompt_of_qwen3_5() -> None:
    assert TEMPLATES["qwen3.5"].render(CONVERSATION[:6], generation=True) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n<think>\nr2\n</think>\n\n\n\n<tool_call>\n<function=f>\n"
        "<parameter=arguments>\n{}\n</parameter>\n</function>\n</tool_call><|im_end|>\n<|im_start|>user\n"
        "<tool_response>\nfound\n</tool_response><|im_end|>\n<|im_start|>assistant\n<think>\n"
    )


def test_thoughts_not_sent_back_are_missing_in_the_loop_too() -> None:
    calls = list(written_calls(TEMPLATES["qwen3"], CONVERSATION, without_thoughts))
    assert "<think>" not in calls[-1][0] and all("<think>" in answer for _, answer in calls)


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_generated_is_what_is_read_again(name: str) -> None:
    ids, rng = IdText(4_096), np.random.default_rng(1)

    def draw(message: Said) -> Said:
        texts = {
            k: ids.text(rng.integers(1_000, 4_096, 9))
            for k in ("content", "reasoning_content")
            if message.get(k)
        }
        return {**message, **texts}

    messages = [draw(message) for message in said(name)]
    for prompt, answer in written_calls(TEMPLATES[name], messages):
        whole, parts = ids.encode(prompt + answer), [*ids.encode(prompt), *ids.encode(answer)]
        assert whole.tolist() == parts
        for marker in (piece for piece in pieces(prompt) if piece in MARKERS):
            assert ids.markers[marker] in whole


def test_ids_come_back_from_their_text() -> None:
    ids = IdText(131_072)
    drawn = np.array([1_000, 1_001, 65_535, 131_071])
    assert ids.encode(ids.text(drawn)).tolist() == drawn.tolist()
    assert ids.encode("<|im_end|>\nA").tolist() == [ids.markers["<|im_end|>"], 1_010, 1_065]


@pytest.mark.parametrize("make", [lambda: find_template("gpt-2"), lambda: IdText(200)])
def test_what_is_unknown_or_too_small_is_refused(make) -> None:
    with pytest.raises(BadInputError, match=r"qwen3\.5|400"):
        make()
