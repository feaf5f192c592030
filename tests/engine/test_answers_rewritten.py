"""Clients that send answers back without their ends: states inside answers, and the answers of an empty cache."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from live_server import LiveServer, plugin_environment, running
from server_pair import Answer

from marconi_ext.policies.answer_grid import GRIDS, last_place
from marconi_ext.traces.script import draw_tokens

pytestmark = pytest.mark.engine

CHATS, TURNS, ANSWER_TOKENS, TRIMMED, NEW_TOKENS = 4, 4, 75, 3, 40
Chat = list[list[int]]
"""Prompts: each goes on from the one before and its answer, without the answer's last tokens."""


@pytest.fixture(scope="module")
def chats(model: Path) -> list[tuple[Chat, list[Answer]]]:
    """With the prefix cache off."""
    found = []
    with running(model, marconi=False, disable_radix_cache=True) as live:
        for number in range(CHATS):
            rng = np.random.default_rng([21, number])
            prompt, prompts, answers = draw_tokens(rng, 120 + 7 * number, 4_096).tolist(), [], []
            for _ in range(TURNS):
                answer = live.generate(prompt, ANSWER_TOKENS)
                prompts.append(prompt)
                answers.append(answer)
                prompt = [
                    *prompt,
                    *answer.output_ids[:-TRIMMED],
                    *draw_tokens(rng, NEW_TOKENS, 4_096).tolist(),
                ]
            found.append((prompts, answers))
    return found


@pytest.fixture(scope="module", params=[1, 16], ids="page-{}".format)
def live(
    request: pytest.FixtureRequest, model: Path, sign: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """While `sign` exists, its states inside answers are wrong."""
    env = plugin_environment(tmp_path_factory.mktemp("plugin"), "late_answers")
    with running(model, env=env | {"LATE_ANSWERS_SIGN": str(sign)}, page_size=request.param) as server:
        yield server


@pytest.fixture(scope="module")
def sign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sign") / "late"


def turn_by_turn(
    live: LiveServer, chats: list[tuple[Chat, list[Answer]]], at_once: int
) -> list[list[Answer]]:
    """All chats' first turns, then their second ones: so many at a time. Returns: by chat."""
    live.server.flush_cache()
    with ThreadPoolExecutor(at_once) as pool:
        turns = [
            list(pool.map(lambda chat, n=n: live.generate(chat[0][n], ANSWER_TOKENS), chats))
            for n in range(TURNS)
        ]
    return [list(answers) for answers in zip(*turns, strict=True)]


def wrong(chats: list[tuple[Chat, list[Answer]]], found: list[list[Answer]]) -> list[tuple[int, int]]:
    return [
        (number, turn)
        for number, ((_, expected), answers) in enumerate(zip(chats, found, strict=True))
        for turn, (one, other) in enumerate(zip(answers, expected, strict=True))
        if one.output_ids != other.output_ids
        or not np.allclose(one.logprobs, other.logprobs, atol=1e-4, rtol=0)
    ]


def test_a_trimmed_answer_is_reused_up_to_the_grid(
    live: LiveServer, chats: list[tuple[Chat, list[Answer]]]
) -> None:
    assert wrong(chats, turn_by_turn(live, chats, 1)) == []  # learns that answers are trimmed
    found = turn_by_turn(live, chats, CHATS)
    live.assert_nothing_leaked()
    assert wrong(chats, found) == []
    inside, page = 0, live.server.info()["page_size"]
    for (prompts, _), answers in zip(chats, found, strict=True):
        for earlier, prompt, answer in zip(prompts, prompts[1:], answers[1:], strict=False):
            parts, ended = len(prompt) - NEW_TOKENS, len(earlier) + ANSWER_TOKENS - 1
            places = [last_place(len(earlier), ended, grid) for grid in GRIDS]
            # the last multiple may lie behind the change
            end = (len(earlier) - 1) // page * page
            reused = {place if 0 < place <= parts else end for place in places}
            assert answer.cached_tokens in reused, (len(earlier), parts, answer.cached_tokens)
            inside += answer.cached_tokens > len(earlier)
    assert inside > CHATS * (TURNS - 1) * 2 / 3
    assert wrong(chats, the_same_again(live, chats, page)) == []
    if page == 1:
        assert live.marconi()["counters"]["published_in-answer"] > CHATS * TURNS
    table = live.marconi()["table"]
    assert table["differences"] == table["pending"] == 0


def the_same_again(live: LiveServer, chats: list[tuple[Chat, list[Answer]]], page: int) -> list[list[Answer]]:
    """Each prompt is served to its last token, or its last page."""
    found = [[live.generate(prompt, ANSWER_TOKENS) for prompt in prompts] for prompts, _ in chats]
    for (prompts, _), answers in zip(chats, found, strict=True):
        assert [a.cached_tokens for a in answers] == [(len(p) - 1) // page * page for p in prompts]
    return found


def test_states_of_one_token_more_are_seen(
    live: LiveServer, chats: list[tuple[Chat, list[Answer]]], sign: Path
) -> None:
    if live.server.info()["page_size"] > 1:
        pytest.skip("SGLang names the states of pages itself")
    sign.touch()
    found = turn_by_turn(live, chats, 1)
    sign.unlink()
    assert len(wrong(chats, found)) > CHATS
