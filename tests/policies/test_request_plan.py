"""What a server saves of what admission offers: the kinds that it was told to, and no guess at the others."""

from __future__ import annotations

import numpy as np
import pytest

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.registry import parse_policy
from marconi_ext.policies.table.checkpoints import Kind
from marconi_ext.simulator.live_rules import LiveRules

WITHOUT_INPUT_ENDS = (Kind.BRANCH, Kind.BOUNDARY, Kind.PROMPT_END, Kind.LAST_TOKEN)


@pytest.mark.parametrize(
    ("policy", "kinds", "guesses"),
    [
        ("selective+lru", tuple(Kind), True),
        ("selective+lru", WITHOUT_INPUT_ENDS, False),
        ("exact+lru", tuple(Kind), False),
    ],
)
def test_where_a_first_prompts_input_ends_is_guessed(
    policy: str, kinds: tuple[Kind, ...], guesses: bool
) -> None:
    currency = Currency()
    rules = LiveRules(8, 10**4, *parse_policy(policy).build(currency), currency, kinds)
    rules.serve(np.arange(45, dtype=np.int32), np.arange(2, dtype=np.int32))
    saved = {node.depth_tokens for node in rules.tree.nodes() if node.state is not None}
    assert saved == {44, 46} | ({45 - 32} if guesses else set())
