"""What users of hybrid models' caches have reported elsewhere, on a live server against one with its cache off.

Each case's requests are sent twice, every answer is compared, and slots, table, tree and sums are checked after each
pass. `bench/public_reports.py` has more servers and larger numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import report_cases as cases
from public_reports import AMPLE, VOCABULARY
from report_cases import with_
from server_pair import Pair, Report, cache_off, pair, twice
from small_adapter import SERVER_OPTIONS, write_adapter

from marconi_ext.models.toy_model import ToyModel

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: write_adapter(folder / name, ToyModel(vocab=VOCABULARY), seed)
        for seed, name in enumerate(("one", "two"))
    }


@pytest.fixture(scope="module")
def both(model: Path) -> Iterator[Pair]:
    """Chunks of an odd size, pools with room for everything, and LoRA adapters."""
    with (
        cache_off(model, **SERVER_OPTIONS) as off,
        pair(model, off, chunked_prefill_size=65, **AMPLE, **SERVER_OPTIONS) as found,
    ):
        yield found


@pytest.mark.parametrize(
    "report",
    [
        with_(cases.aborted_prefills, rounds=12),
        cases.short_extends,
        cases.boundary_lengths,
        cases.several_samples,
        cases.logprobs_of_cached_tokens,
        cases.ends_of_answers,
        cases.paused_with_waiting_requests,
    ],
    ids=lambda report: report.__name__,
)
def test_report(both: Pair, report: Report) -> None:
    twice(both, report, seed=0)


def test_salts_keys_and_adapters_are_isolated(both: Pair, adapters: dict[str, Path]) -> None:
    twice(both, with_(cases.isolated_keys, adapters=adapters), seed=0)
