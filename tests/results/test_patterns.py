"""Where prompts leave what was said before, told from token ids."""

from __future__ import annotations

import numpy as np
import pytest

from marconi_ext.results.patterns import Sessions
from marconi_ext.traces.request import Request
from marconi_ext.traces.synthetic import synthetic

LONG = list(range(100, 200))


def told(*calls: tuple[list[int], list[int]]) -> Sessions:
    found = Sessions()
    for turn, (prompt, answer) in enumerate(calls):
        ids = np.array(prompt, np.int32), np.array(answer, np.int32)
        found.add(Request("s", turn, float(turn), *ids))
    return found


@pytest.mark.parametrize(
    ("second", "pattern", "again"),
    [
        ([*LONG, 7, 8, 9, 5, 5], "kept", 0),
        ([*LONG, 7, 8, 5, 5], "input-end", 2),
        ([*LONG, 7, 8, 9, 6, 6, 6, 5, 5], "answer", 2),
        ([*LONG[:-2], 5, 5, 5, 5, 5, 5], "input-end", 6),
        ([*LONG[:50], 5, 5], "other", 2),
        (LONG, "again", 0),
    ],
)
def test_one_prompt_after_another(second: list[int], pattern: str, again: int) -> None:
    answer = [7, 8, 9] if pattern == "kept" else [7, 8, 9, 6, 6, 6, 6, 6, 6]
    found = told((LONG, answer), (second, []))
    assert {name for name, count in found.requests.items() if count} == {pattern}
    assert sum(found.again_tokens.values()) == again


def test_a_loop_whose_thoughts_are_dropped_at_once() -> None:
    first = LONG
    calls = [(first, [1, 2])]
    for step in range(3):
        calls.append(([*calls[-1][0], *calls[-1][1], *range(30 * step, 30 * step + 30)], [1, 2]))
    found = told(*calls, ([*first[:-1], *range(1_000, 1_040)], [1]))
    assert (found.requests["kept"], found.requests["loop"]) == (3, 1)
    assert found.again_tokens["loop"] == 40


@pytest.mark.parametrize(
    ("traffic", "sizes", "pattern"),
    [
        ("thinking", {"template": "qwen3.5"}, "input-end"),
        ("thinking", {"template": "qwen3-off"}, "input-end"),
        ("thinking", {"template": "glm"}, "input-end"),  # one token behind it
        ("thinking", {"template": "qwen3.5-kept"}, "kept"),
        ("thinking", {"template": "plain", "client": "rewrites"}, "answer"),
        ("tool-loops", {"calls": (3, 5), "client": "no-thoughts", "template": "qwen3"}, "input-end"),
        ("samples", {"samples": (3, 5)}, "again"),
    ],
)
def test_synthetic_traffic_has_its_patterns(traffic: str, sizes: dict, pattern: str) -> None:
    found = Sessions()
    for request in synthetic(traffic, sessions=3, vocabulary=4_096, **sizes):
        found.add(request)
    assert found.requests[pattern] == sum(found.requests.values()) > 3, found.requests


def test_tool_loops_have_calls_and_tasks() -> None:
    found = Sessions()
    requests = list(synthetic("tool-loops", sessions=2, tasks=(3, 3), calls=(4, 4), vocabulary=4_096))
    for request in requests:
        found.add(request)
    assert len(requests) == 2 * 3 * 5
    assert (found.requests["loop"], found.requests["kept"]) == (2 * 2, 2 * 3 * 4)
    assert found.figures()["loop"]["again"] > 0
