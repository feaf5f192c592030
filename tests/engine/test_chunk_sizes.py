"""Chunks of a prefill of any size: the answers of an empty cache, and the reuse that exact states give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chunk_sizes import SizePass, Sizes, record
from engine_in_process import Engines, Job
from speculative_traffic import Case, wrong

pytestmark = pytest.mark.engine

SIZES = (1, 2, 3, 7, 16, 63, 65)


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    with Engines() as running:
        yield running


@pytest.fixture(scope="module")
def cases(engines: Engines, model: Path) -> list[Case]:
    return engines.run(Job({"model_path": model, "disable_radix_cache": True}, record))


@pytest.fixture(scope="module")
def passes(engines: Engines, model: Path, cases: list[Case]) -> dict[int, list[SizePass]]:
    options = {"model_path": model, "enable_marconi": True, "chunked_prefill_size": 64}
    found = engines.run(Job(options, Sizes(cases, SIZES)))
    return {size: [one for one in found if one.chunk_tokens == size] for size in SIZES}


@pytest.mark.parametrize("size", SIZES)
def test_chunks(passes: dict[int, list[SizePass]], cases: list[Case], size: int) -> None:
    """Twice the same requests; table, slots and sums after each time."""
    for one in passes[size]:
        assert wrong(cases, one.answers) == []
        facts, stats = one.marconi, one.marconi["stats"]
        assert facts["slots"]["unaccounted"] == facts["slots"]["held"] == 0
        assert facts["table"]["differences"] == facts["table"]["pending"] == stats["wrong_sums"] == 0
        parts = stats["hit_tokens"] + sum(stats["lost_tokens"].values()) + stats["new_tokens"]
        assert parts == stats["prompt_tokens"] and stats["planning_failures"] == {}
        assert one.aborted > 5
    for case, answer in zip(cases, passes[size][1].answers, strict=True):
        assert answer.cached_tokens == len(case.ask.prompt) - 1, (
            "the second time all but the last token is reused"
        )
