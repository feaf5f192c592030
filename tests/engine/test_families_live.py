"""Every family but Mamba2 on the real engine: exact hits, and the answers of an empty cache, over the same requests
twice; and states that are one token early are seen by the same comparison."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from live_server import LiveServer, plugin_environment, running
from unequal_answers import unequal

from marconi_ext.models.families import FAMILIES, write_small_model
from marconi_ext.traces.script import draw_tokens
from sglang_hooks.recurrence import form

pytestmark = pytest.mark.engine

ANSWER_TOKENS = 6


def requests(vocabulary: int) -> list[list[int]]:
    """Branches at and off the chunk grid, chained prompts, one-token extends, and prompts of several prefill chunks."""
    ids = draw_tokens(np.random.default_rng(0), 5_000, vocabulary).tolist()
    system, long = ids[:150], ids[2_000:2_700]
    prompts = [ids[:200], [*system, *ids[300:350]], [*system, *ids[400:460]], [*ids[:200], *ids[500:530]]]
    prompts += [[*system[:97], *ids[i : i + 70 + i % 7]] for i in range(600, 1_200, 100)]
    prompts += [[*prompts[4], ids[5]], [*prompts[4], ids[5], ids[6]], prompts[4][:-1]]
    prompts += [
        long,
        [*long[:600], *ids[3_000:3_100]],
        [*long[:300], *ids[3_200:3_500]],
        [*long, *ids[3_600:3_640]],
    ]
    return prompts


def differing_trimmed(live: LiveServer, vocabulary: int) -> list[int]:
    """As `unequal`, of a chat whose client trims each answer: alone, then turn by turn, twice from an empty cache."""
    ids = draw_tokens(np.random.default_rng(1), 300, vocabulary).tolist()
    prompt, prompts, alone = ids[:90], [], []
    for turn in range(4):
        live.server.flush_cache()
        alone.append(live.generate(prompt, 40))
        prompts.append(prompt)
        prompt = [*prompt, *alone[-1].output_ids[:-2], *ids[100 + 20 * turn : 120 + 20 * turn]]
    wrong = []
    for _ in range(2):  # the first time it is learned
        live.server.flush_cache()
        wrong += unequal([live.generate(prompt, 40) for prompt in prompts], alone)
    return wrong


IN_KERNEL, IN_PIECES = "states_saved_in_kernel", "extend_forks"
CASES = {
    "gdn": ("gdn", IN_KERNEL),
    "kda": ("kda", IN_KERNEL),
    "gdn-in-pieces": ("gdn", IN_PIECES),
    "lightning": ("lightning", IN_KERNEL),
    "lfm2": ("lfm2", None),
    "lfm2-moe": ("lfm2-moe", None),
    "zaya": ("zaya", None),
}


def test_every_family_is_asked() -> None:
    assert {family for family, _ in CASES.values()} == set(FAMILIES) - {"mamba2"}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def live(case: str, tmp_path: Path) -> Iterator[LiveServer]:
    """A server of the family's small model; while `early` lies in the test's folder its states are wrong."""
    family, counter = CASES[case]
    folder = write_small_model(tmp_path / "model", FAMILIES[family]())
    env = plugin_environment(tmp_path / "plugin", "early_states")
    env["EARLY_STATES_SIGN"] = str(tmp_path / "early")
    env[form.VARIABLE] = form.KERNEL if counter == IN_KERNEL else form.PIECES
    with running(folder, env=env, marconi_eviction="exact+lru", chunked_prefill_size=256) as server:
        yield server


def test_hits_are_exact_and_outputs_those_of_an_empty_cache(
    live: LiveServer, case: str, tmp_path: Path
) -> None:
    prompts = requests(4_096)
    asked = [(prompt, ANSWER_TOKENS) for prompt in prompts]
    alone = []
    for prompt, tokens in asked:
        live.server.flush_cache()
        alone.append(live.generate(prompt, tokens))
    live.server.flush_cache()
    first = [live.generate(*one) for one in asked]
    second = live.generate_all(asked, 8)
    live.assert_nothing_leaked()
    counters = live.marconi()["counters"]
    forms = [name for name in (IN_KERNEL, IN_PIECES) if counters.get(name)]
    assert forms == [name for name in CASES[case][1:] if name]
    assert [answer.cached_tokens for answer in first[:4]] == [0, 0, 150, 199]
    assert first[-1].cached_tokens == len(prompts[-4]) - 1
    assert [answer.cached_tokens for answer in second] == [len(prompt) - 1 for prompt in prompts]
    assert unequal(first, alone) == unequal(second, alone) == []
    if CASES[case][1] == IN_KERNEL:
        assert differing_trimmed(live, 4_096) == []
        assert live.marconi()["counters"]["published_in-answer"] > 2

    (tmp_path / "early").touch()
    live.server.flush_cache()
    wrong = [live.generate(*one) for one in asked] + [live.generate(*one) for one in asked]
    assert len(unequal(wrong, alone + alone)) > len(prompts) // 2
