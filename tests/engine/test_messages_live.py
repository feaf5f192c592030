"""Messages begin where the tokenizer's own template says: a system prompt is reused at its second appearance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from live_server import running

from marconi_ext.traces.script import draw_tokens

pytestmark = pytest.mark.engine

BEGIN, TEXT, ANSWER = 1, 3, 4  # <s>, [INST] and [/INST] of the toy model's tokenizer


def test_a_system_prompt_is_reused_at_its_second_visit(model: Path) -> None:
    rng = np.random.default_rng(7)
    system, *users = (draw_tokens(rng, n, 4_096).tolist() for n in (500, 60, 70))
    prompts = [[BEGIN, TEXT, *system, TEXT, *user, ANSWER] for user in users]
    with running(model, skip_tokenizer_init=False) as live:
        assert live.marconi()["policy"]["messages"]["headers"] == [[TEXT], [ANSWER]]
        found = [live.generate(prompt, 8).cached_tokens for prompt in prompts]
    assert found == [0, 503]
