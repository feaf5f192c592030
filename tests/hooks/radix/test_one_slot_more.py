"""Sessions that take turns in a pool of one state more than sessions: each turn starts from the state of the last one.

What a conversation has passed is deeper than a short turn is long, so believing that somebody comes back to it would
cost the newest state.
"""

from __future__ import annotations

from array import array

import numpy as np
import pytest
from engineless_cache import Driver, publish_settings

from marconi_ext.policies.learned import hazards

TURNS, ANSWER = 40, 3
RUNNING = 1  # slots of the request that runs


def turns_below(sessions: int, begun_with: int) -> list[tuple[int, int]]:
    """(turn, tokens missing) wherever a turn finds less than the state that the last one left."""
    publish_settings(64)
    slots, tokens = sessions + 1 + RUNNING, 60_000
    driver = Driver("marconi", slots=slots, tokens=tokens, context_tokens=3_000, requests=RUNNING)
    rng = np.random.default_rng(sessions)

    def draw(tokens: int) -> list[int]:
        return rng.integers(1_000, 4_096, tokens).tolist()

    histories, held = [draw(begun_with) for _ in range(sessions)], [0] * sessions
    below = []
    for turn in range(TURNS):
        for number, history in enumerate(histories):
            prompt, answer = history + draw(int(rng.integers(1, 12))), draw(ANSWER)
            driver.serve(turn * sessions + number, array("q", prompt), array("q", answer))
            if driver.hit_tokens < held[number]:
                below.append((turn + 1, held[number] - driver.hit_tokens))
            histories[number] = prompt + answer
            held[number] = len(histories[number]) - 1
    return below


@pytest.mark.parametrize("begun_with", [40, 400, 2_000])
@pytest.mark.parametrize("sessions", [1, 2, 3, 8])
def test_no_turn_falls_below_the_last_ones_state(sessions: int, begun_with: int) -> None:
    assert turns_below(sessions, begun_with) == []


def test_belief_in_comebacks_would_cost_a_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hazards, "DOUBT", 1.0)
    assert turns_below(3, 2_000)
