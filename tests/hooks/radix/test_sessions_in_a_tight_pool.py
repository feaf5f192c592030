"""Sessions that take turns, with room for one state more than sessions: no turn falls below the last one's state, but
for one in the first turns of three and of seven sessions, before the policy has seen any of them go on twice.
"""

from __future__ import annotations

from array import array

import engineless_cache
import numpy as np
import pytest
from engineless_cache import Driver

TURNS, ANSWER_TOKENS = 40, 3


@pytest.mark.parametrize(("sessions", "most_below"), [(2, 0), (3, 1), (7, 1)])
def test_no_turn_falls_below_the_last_ones_state(sessions: int, most_below: int) -> None:
    """The state after the last answer serves every next turn; a slot more is for the request that runs."""
    engineless_cache.publish_settings()
    driver = Driver("marconi", slots=sessions + 2, tokens=20_000, context_tokens=2_048, requests=1)
    rng = np.random.default_rng(0)

    def draw(tokens: int) -> array:
        return array("q", rng.integers(1_000, 4_096, tokens).tolist())

    histories = [draw(40) for _ in range(sessions)]
    held, below = [0] * sessions, []
    for turn in range(TURNS):
        for number in range(sessions):
            prompt = histories[number] + draw(int(rng.integers(1, 12)))
            answer = draw(ANSWER_TOKENS)
            driver.serve(turn * sessions + number, prompt, answer)
            if driver.hit_tokens < held[number]:
                below.append((turn, number, driver.hit_tokens, held[number]))
            held[number] = len(prompt) + ANSWER_TOKENS - 1
            histories[number] = prompt + answer
    assert len(below) <= most_below and all(turn < 3 for turn, *_ in below), below
    assert driver.cache.census.differences() == []
