"""Speculative decoding: the answers are those of an empty cache, and every request's last state is kept.

Each model drafts in one way throughout and in each other way once: n-grams (trees that branch) with Mamba2, the layer
for multi-token prediction (chains) with Gated DeltaNet. Blocks of drafts (DFLASH, DSPARK) hold recorded answers,
spoiled at random. The other families run once, in a way that SGLang has for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import running_ahead
from engine_in_process import Engines, Job
from recorded_drafts import RecordedDrafts
from speculative_traffic import (
    CONCURRENCY,
    MULTI_TOKEN_PREDICTION,
    NGRAM,
    VOCABULARY,
    Case,
    Pass,
    Twice,
    record,
    wrong,
)

from marconi_ext.models.drafts import (
    write_dflash_draft,
    write_dspark_draft,
    write_eagle3_draft,
    write_standalone_draft,
)
from marconi_ext.models.families import FAMILIES, write_small_model

pytestmark = pytest.mark.engine

EMBEDDING_SCALE = 8  # so that a draft is right more often than not, and often wrong
SYNCHRONOUS = {"disable_overlap_schedule": True}
MARCONI = {"enable_marconi": True}
Options = dict[str, object]


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    with Engines() as running:
        yield running


@pytest.fixture(scope="module", params=["mamba2", "gdn"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / request.param
    return write_small_model(folder, FAMILIES[request.param](embedding_scale=EMBEDDING_SCALE))


@pytest.fixture(scope="module")
def cases(engines: Engines, model: Path) -> list[Case]:
    return engines.run(Job({"model_path": model, "disable_radix_cache": True}, record))


def drafts(model: Path) -> list[Options]:
    """The way in which this model drafts, and the other."""
    both: list[Options] = [NGRAM, MULTI_TOKEN_PREDICTION]
    return both if model.name == "mamba2" else both[::-1]


@pytest.fixture(scope="module")
def overlapped(engines: Engines, model: Path, cases: list[Case]) -> list[Pass]:
    options = {"model_path": model, **drafts(model)[0], **MARCONI}
    return engines.run(Job(options, Twice(cases)))


def assert_right(cases: list[Case], passes: list[Pass]) -> None:
    """The same answers both times, nothing lost; some drafts were accepted and some weren't."""
    for one in passes:
        assert wrong(cases, one.answers) == []
        facts = one.marconi
        assert facts["slots"]["unaccounted"] == facts["slots"]["held"] == facts["table"]["differences"] == 0
        assert facts["table"]["live_rows"] == facts["table"]["states"] == facts["slots"]["cached"]
        assert facts["stats"]["planning_failures"] == {}
        ends = facts["speculation"]["ends"]
        assert ends["too_late"] == ends["seen_by_host"] == 0 < ends["after_a_run"]
    assert 1.1 < passes[1].acceptance < 3.5
    assert passes[1].marconi["speculation"]["ends"]["inside_a_run"] > 5


def assert_all_exact(cases: list[Case], passes: list[Pass]) -> None:
    """Right, and the state of every last token is kept; where the first ends the answer, that is the prompt's end,
    which is saved anyway."""
    assert_right(cases, passes)
    longer = sum(len(case.alone.output_ids) > 1 for case in cases)
    for number, one in enumerate(passes, 1):
        counters = one.marconi["counters"]
        assert counters.get("last_token_misaligned", 0) == 0
        assert counters["published_last-token"] + counters.get("duplicate", 0) >= number * longer


def test_with_overlap(cases: list[Case], overlapped: list[Pass]) -> None:
    assert_all_exact(cases, overlapped)


def test_without_overlap(engines: Engines, model: Path, cases: list[Case]) -> None:
    options = {"model_path": model, **drafts(model)[0], **MARCONI, **SYNCHRONOUS}
    assert_all_exact(cases, engines.run(Job(options, Twice(cases, (1, CONCURRENCY)))))


def test_drafts_of_the_other_kind(engines: Engines, model: Path, cases: list[Case]) -> None:
    options = {"model_path": model, **drafts(model)[1], **MARCONI}
    assert_all_exact(cases, engines.run(Job(options, Twice(cases))))


def test_drafts_of_another_model(engines: Engines, model: Path, cases: list[Case]) -> None:
    """A model of its own for Mamba2, whose models show an EAGLE3 head no layers; an EAGLE3 head for the other."""
    folder = model.with_name(f"{model.name}-draft")
    if model.name == "mamba2":
        algorithm, draft = "STANDALONE", write_standalone_draft(folder, VOCABULARY, EMBEDDING_SCALE)
    else:
        algorithm, draft = "EAGLE3", write_eagle3_draft(folder, VOCABULARY)
    other = {"speculative_algorithm": algorithm, "speculative_draft_model_path": draft}
    options = {"model_path": model, **MULTI_TOKEN_PREDICTION, **other, **MARCONI}
    assert_all_exact(cases, engines.run(Job(options, Twice(cases))))


def blocks(model: Path, algorithm: str) -> Options:
    """Drafts of a block: five tokens at once."""
    folder = model.with_name(f"{model.name}-{algorithm}")
    if algorithm == "DFLASH":
        draft = write_dflash_draft(folder, VOCABULARY, block=6)  # with the answer's last token
    else:
        draft = write_dspark_draft(folder, VOCABULARY, drafted=5)
    options = {"speculative_algorithm": algorithm, "speculative_draft_model_path": draft}
    return {"model_path": model, **options, "mamba_radix_cache_strategy": "extra_buffer"}


@pytest.mark.parametrize("algorithm", ["DFLASH", "DSPARK"])
def test_drafts_of_a_block(engines: Engines, model: Path, cases: list[Case], algorithm: str) -> None:
    options = {**blocks(model, algorithm), **MARCONI}
    passes = engines.run(Job(options, Twice(cases), RecordedDrafts(cases)))
    assert_all_exact(cases, passes)
    assert passes[0].marconi["speculation"]["ends"]["inside_a_run"] > 30


def test_a_block_that_sglang_commits_shows(engines: Engines, model: Path, cases: list[Case]) -> None:
    """The negative control for blocks: all is ours, but how much of them is committed."""
    options = {**blocks(model, "DSPARK" if model.name == "mamba2" else "DFLASH"), **MARCONI}
    before = RecordedDrafts(cases, then=running_ahead.commit_whole_blocks)
    passes = engines.run(Job(options, Twice(cases), before))
    assert len(wrong(cases, passes[1].answers)) >= 12
    assert passes[1].marconi["slots"]["unaccounted"] == 0


def test_larger_pages(engines: Engines, model: Path, cases: list[Case]) -> None:
    """States are kept at page multiples, tracked by SGLang or where the answer ends."""
    options = {"model_path": model, **MULTI_TOKEN_PREDICTION, **MARCONI, "page_size": 16}
    passes = engines.run(Job(options, Twice(cases)))
    assert_right(cases, passes)
    reused = [sum(answer.cached_tokens for answer in one.answers) for one in passes]
    assert reused[1] > reused[0] > 0


def test_acceptance_is_that_of_stock(
    engines: Engines, model: Path, cases: list[Case], overlapped: list[Pass]
) -> None:
    """As SGLang reports it in /server_info and sglang:spec_accept_length: the same drafts are accepted."""
    options = {"model_path": model, **drafts(model)[0]}
    stock = engines.run(Job(options, Twice(cases)))
    assert wrong(cases, stock[1].answers) == []
    for theirs, mine in zip(stock, overlapped, strict=True):
        assert mine.acceptance == pytest.approx(theirs.acceptance, rel=0.02)


def test_a_slot_that_runs_ahead_shows(engines: Engines, model: Path, cases: list[Case]) -> None:
    """The negative control: SGLang's own rule for what may be donated, and its own commits."""
    options = {"model_path": model, **drafts(model)[0], **MARCONI}
    passes = engines.run(Job(options, Twice(cases), before=running_ahead.apply))
    assert len(wrong(cases, passes[1].answers)) >= 12
    assert passes[1].marconi["slots"]["unaccounted"] == 0  # the census can't tell


@pytest.mark.parametrize("family", ["kda", "lightning", "lfm2"])
def test_other_families_with_overlap(engines: Engines, family: str, tmp_path: Path) -> None:
    """Trees with KDA; SGLang verifies drafts of the two others as chains alone."""
    model = write_small_model(tmp_path / family, FAMILIES[family](embedding_scale=EMBEDDING_SCALE))
    options: Options = NGRAM if family == "kda" else MULTI_TOKEN_PREDICTION
    if family == "lfm2":
        draft = write_standalone_draft(tmp_path / "draft", VOCABULARY, EMBEDDING_SCALE)
        options = options | {"speculative_algorithm": "STANDALONE", "speculative_draft_model_path": draft}
    cases = engines.run(Job({"model_path": model, "disable_radix_cache": True}, record))
    assert_all_exact(cases, engines.run(Job({"model_path": model, **options, **MARCONI}, Twice(cases))))
