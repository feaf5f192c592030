"""The same prompt again, through the real cache: served to its last token but one, floored to a page."""

from __future__ import annotations

from array import array

import engineless_cache
import numpy as np
import pytest
from engineless_cache import Driver

LENGTHS = sorted(multiple + by for multiple in (16, 48, 64, 128, 192, 320) for by in (-1, 0, 1))
OURS = (
    "gittins",
    "gittins-basic",
    "lru",
    "seglen",
    "flop-aware:1",
    "forty-lines",
    "exact+lru",
    "foresight+lru",
)


@pytest.fixture(scope="module", autouse=True)
def settings() -> None:
    engineless_cache.publish_settings(64)


def served(policy: str, page: int) -> list[list[int]]:
    """Tokens served of each length, at its first, second and third sending."""
    rng, found, number = np.random.default_rng(3), [], 0
    driver = Driver("marconi", slots=400, tokens=32_000, context_tokens=512, page_size=page, policy=policy)
    for length in LENGTHS:
        prompt, hits = array("q", [number, *rng.integers(1_000, 4_000, length - 1).tolist()]), []
        for _ in range(3):
            number += 1
            driver.serve(number, prompt, array("q", rng.integers(4_000, 9_000, 9).tolist()))
            hits.append(driver.hit_tokens)
        found.append(hits)
    return found


@pytest.mark.parametrize("page", [1, 16])
@pytest.mark.parametrize("policy", OURS)
def test_it_is_served_from_the_second_sending_on(policy: str, page: int) -> None:
    whole = [(length - 1) // page * page for length in LENGTHS]
    assert served(policy, page) == [[0, tokens, tokens] for tokens in whole]


def test_the_paper_s_rule_serves_it_late() -> None:
    """The control: it saves no prompt's end, and finds the branch at the third sending."""
    assert [hits[1] for hits in served("marconi", 1)] == [0] * len(LENGTHS)
