"""Pipeline stages, a storage tier, prefill and decode apart, priorities: the answers of an empty cache, whoever saved
the states."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from engine_in_process import STORAGE, Engines, Job, StorageFolder
from prefill_decode_pair import NO_MOONCAKE, Pair
from speculative_traffic import Case, Pass, Twice, record, wrong

from marconi_ext.models.toy_model import ToyModel, write_model

pytestmark = pytest.mark.engine

STAGES = {
    "pp_size": 2,
    "enable_marconi": True,
    "max_mamba_cache_size": 60,
    "chunked_prefill_size": 128,  # the next piece of a prompt is launched before the last one's result is known
    "marconi_eviction": "marconi",
    "marconi_bootstrap_window_size": 30,
    "marconi_tuning_interval": 40,
}


def compare_ranks() -> None:
    """SGLang's own check then ends a rank that has decided differently: it is told all that the policy holds, once a
    request."""
    os.environ["SGLANG_ENABLE_RANK_CONSENSUS_CHECKER"] = "1"


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    with Engines() as running:
        yield running


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two pipeline stages one has two of the three recurrent layers."""
    folder = tmp_path_factory.mktemp("models") / "mamba2"
    write_model(folder, ToyModel(chunk_size=64, pattern="MM**M-"))
    return folder


@pytest.fixture(scope="module")
def cases(engines: Engines, model: Path) -> list[Case]:
    return engines.run(Job({"model_path": model, "disable_radix_cache": True}, record))


def assert_exact(cases: list[Case], passes: list[Pass]) -> None:
    """The same answers both times; the book is the tree's, no slot is lost, nothing planned was dropped."""
    for one in passes:
        assert wrong(cases, one.answers) == []
        facts = one.marconi
        assert facts["slots"]["unaccounted"] == facts["slots"]["held"] == facts["table"]["differences"] == 0
        assert facts["table"]["live_rows"] == facts["table"]["states"] == facts["slots"]["cached"] > 0
        assert facts["stats"]["planning_failures"] == {}
        assert facts["counters"].get("last_token_misaligned", 0) == 0


def cached(one: Pass) -> int:
    return sum(answer.cached_tokens for answer in one.answers)


@pytest.mark.parametrize("ranks", [1, 2], ids=["one-rank-a-stage", "two-ranks-a-stage"])
def test_two_pipeline_stages(engines: Engines, model: Path, cases: list[Case], ranks: int) -> None:
    """Micro-batches in flight, states scarce, a policy that tunes itself; all ranks decide alike."""
    options = {"model_path": model, "tp_size": ranks, **STAGES}
    passes = engines.run(Job(options, Twice(cases), before=compare_ranks))
    assert_exact(cases, passes)
    facts = passes[1].marconi
    assert len(facts["policy"]["tunings"]) >= 2
    assert facts["counters"]["published_last-token"] > 0 < facts["counters"]["published_branch"]
    assert sum(answer.cached_tokens > 0 for answer in passes[1].answers) > len(cases) / 2


def test_one_storage_for_several_servers(
    engines: Engines, model: Path, cases: list[Case], tmp_path: Path
) -> None:
    """What the first has saved the second resumes, and the third, to whom the states are shuffled, shows it."""
    options = {"model_path": model, **STORAGE}
    inside = StorageFolder(tmp_path)
    first = engines.run(Job(options, Twice(cases), before=inside))
    assert_exact(cases, first)
    second = engines.run(Job(options, Twice(cases), before=inside))
    assert_exact(cases, second)
    assert second[1].marconi["counters"]["storage_fetched_states"] > 10
    assert cached(second[0]) > cached(first[0]) + 1_000  # first visits to a prefix are hits, too
    states = sorted(file for file in tmp_path.iterdir() if ".mamba_" in file.name)
    assert len(states) > 10
    bodies = [file.read_bytes() for file in states]
    for file, body in zip(states, bodies[1:] + bodies[:1], strict=True):
        file.write_bytes(body)
    third = engines.run(Job(options, Twice(cases), before=inside))
    assert len(wrong(cases, third[0].answers)) > 10
    assert third[1].marconi["slots"]["unaccounted"] == 0  # the census can't tell


@pytest.mark.skipif(NO_MOONCAKE is not None, reason=str(NO_MOONCAKE))
def test_prefill_and_decode_apart(engines: Engines, model: Path, cases: list[Case]) -> None:
    """Over Mooncake's TCP: to a decode server without a prefix cache, to one with, and to one that dies."""
    for caching in (False, True):
        pair = Pair(cases, {"model_path": model, "enable_marconi": True}, caching)
        found = engines.run(Job(pair.prefill_options, pair, before=pair.start))
        assert_exact(cases, found.passes)
        counters = found.passes[1].marconi["counters"]
        assert counters["published_branch"] > 0 == counters.get("published_last-token", 0)
        assert cached(found.passes[1]) > cached(found.passes[0]) > 0
        assert found.failed > 0
        slots = found.after_the_loss["slots"]
        assert slots["unaccounted"] == slots["held"] == found.after_the_loss["table"]["differences"] == 0
        if caching:
            assert found.decode["counters"]["published_last-token"] > 0
            assert found.decode["slots"]["unaccounted"] == found.decode["table"]["differences"] == 0
        else:
            assert found.decode is None


def test_priorities_and_lazy_tracking(engines: Engines, model: Path, cases: list[Case]) -> None:
    options = {
        "model_path": model,
        "enable_marconi": True,
        "enable_priority_scheduling": True,
        "max_running_requests": 3,
        "max_mamba_cache_size": 40,
        "mamba_radix_cache_strategy": "extra_buffer_lazy",  # taken as extra_buffer
    }
    ranked = [
        replace(case, ask=replace(case.ask, fields={"priority": n % 5})) for n, case in enumerate(cases)
    ]
    passes = engines.run(Job(options, Twice(ranked)))
    assert_exact(ranked, passes)
    assert cached(passes[1]) > 0
