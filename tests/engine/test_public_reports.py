"""What users of hybrid models' caches have reported elsewhere, on a live server against one with its cache off.

Each case's requests are sent twice, every answer is compared, and slots, table, tree and sums are checked after each
pass. `bench/public_reports.py` has more servers and larger numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import report_cases as cases
from public_reports import AMPLE
from report_cases import with_
from server_pair import Pair, Report, cache_off, pair, twice

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def both(model: Path) -> Iterator[Pair]:
    """Chunks of an odd size, and pools with room for everything."""
    with cache_off(model) as off, pair(model, off, chunked_prefill_size=65, **AMPLE) as found:
        yield found


@pytest.mark.parametrize(
    "report",
    [
        with_(cases.aborted_prefills, rounds=12),
        cases.short_extends,
        cases.boundary_lengths,
        cases.isolated_keys,
        cases.several_samples,
        cases.logprobs_of_cached_tokens,
        cases.ends_of_answers,
        cases.paused_with_waiting_requests,
    ],
    ids=lambda report: report.__name__,
)
def test_report(both: Pair, report: Report) -> None:
    twice(both, report, seed=0)
