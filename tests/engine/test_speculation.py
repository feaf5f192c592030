"""Speculative decoding: the answers are those of an empty cache, and every request's last state is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import running_ahead
from engine_in_process import Engines, Job
from speculative_traffic import Case, Pass, Twice, record, wrong

from marconi_ext.models.gdn import GdnModel
from marconi_ext.models.seeded import write_folder
from marconi_ext.models.toy_model import ToyModel, write_model

pytestmark = pytest.mark.engine

NGRAM = {
    "speculative_algorithm": "NGRAM",
    "speculative_num_draft_tokens": 6,
    "speculative_ngram_max_bfs_breadth": 2,  # trees that branch
    "mamba_radix_cache_strategy": "extra_buffer",
}
SYNCHRONOUS = {"disable_overlap_schedule": True}
MARCONI = {"enable_marconi": True}


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    with Engines() as running:
        yield running


@pytest.fixture(scope="module", params=["mamba2", "gdn"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / request.param
    if request.param == "mamba2":
        write_model(folder, ToyModel(chunk_size=64))
    else:
        gdn = GdnModel()
        write_folder(folder, gdn.config(), gdn.weights)
    return folder


@pytest.fixture(scope="module")
def cases(engines: Engines, model: Path) -> list[Case]:
    return engines.run(Job({"model_path": model, "disable_radix_cache": True}, record))


def assert_all_exact(cases: list[Case], passes: list[Pass]) -> None:
    """The same answers both times, nothing lost, and the state of every last token kept; where the first ends the
    answer, that is the prompt's end, which is saved anyway."""
    longer = sum(len(case.alone.output_ids) > 1 for case in cases)
    for number, one in enumerate(passes, 1):
        assert wrong(cases, one.answers) == []
        facts = one.marconi
        assert facts["slots"]["unaccounted"] == facts["slots"]["held"] == facts["table"]["differences"] == 0
        assert facts["table"]["live_rows"] == facts["table"]["states"] == facts["slots"]["cached"]
        assert facts["stats"]["planning_failures"] == {}
        ends = facts["speculation"]["ends"]
        assert ends["too_late"] == ends["seen_by_host"] == 0 < ends["after_a_run"]
        counters = facts["counters"]
        assert counters.get("last_token_misaligned", 0) == 0
        assert counters["published_last-token"] + counters.get("duplicate", 0) >= number * longer


@pytest.mark.parametrize("order", [{}, SYNCHRONOUS], ids=["overlap", "synchronous"])
def test_ngram_drafts(engines: Engines, model: Path, cases: list[Case], order: dict[str, object]) -> None:
    passes = engines.run(Job({"model_path": model, **NGRAM, **MARCONI, **order}, Twice(cases)))
    assert_all_exact(cases, passes)
    assert passes[1].acceptance > 1.1
    assert passes[1].marconi["speculation"]["ends"]["inside_a_run"] > 5


def test_acceptance_is_that_of_stock(engines: Engines, model: Path, cases: list[Case]) -> None:
    """As SGLang reports it in /server_info and sglang:spec_accept_length: the same drafts are accepted."""
    arms = [{"model_path": model, **NGRAM, **extension} for extension in ({}, MARCONI)]
    stock, ours = (engines.run(Job(arm, Twice(cases))) for arm in arms)
    assert wrong(cases, stock[1].answers) == []
    for theirs, mine in zip(stock, ours, strict=True):
        assert mine.acceptance == pytest.approx(theirs.acceptance, rel=0.02)


def test_a_slot_that_runs_ahead_shows(engines: Engines, model: Path, cases: list[Case]) -> None:
    """The negative control: SGLang's own rule for what may be donated, and its own commits."""
    options = {"model_path": model, **NGRAM, **MARCONI}
    passes = engines.run(Job(options, Twice(cases), before=running_ahead.apply))
    assert len(wrong(cases, passes[1].answers)) >= 12
    assert passes[1].marconi["slots"]["unaccounted"] == 0  # the census can't tell
