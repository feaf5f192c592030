"""The demo's traffic fits the model, whatever trace it came from."""

import json
from pathlib import Path

import pytest

from marconi_ext.commands.demo.traffic import synthetic_workloads, trace_workload
from marconi_ext.errors import BadInputError
from marconi_ext.models.toy_model import write_model
from marconi_ext.servers.engine_options import ModelFacts
from marconi_ext.traces.script import play


@pytest.fixture(scope="module")
def facts(tmp_path_factory) -> ModelFacts:
    return ModelFacts(write_model(tmp_path_factory.mktemp("model") / "toy"))


def take(trace: Path, facts: ModelFacts, *, requests: int = 50, longest: int = 400):
    return trace_workload(str(trace), facts, requests, longest, "auto", "tekken", False, 0)


def test_a_trace_is_cut_to_the_models_size(tmp_path: Path, facts: ModelFacts, capsys) -> None:
    path = tmp_path / "talks.jsonl"
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"word{i} " * 60} for i in range(6)]
    path.write_text("\n".join(json.dumps({"messages": turns}) for _ in range(4)) + "\nbroken\n")
    ((name, scripts),) = take(path, facts).items()
    said = capsys.readouterr().err
    assert name == "talks.jsonl" and "talks.jsonl:5: not JSON" in said and "requests left out" in said
    for request in play(scripts, 0, facts.vocabulary):
        assert len(request.input_ids) <= 400 and request.input_ids.max() < facts.vocabulary
    assert len(next(iter(take(path, facts, requests=3).values()))) == 3


def test_a_trace_of_which_nothing_fits_is_refused(tmp_path: Path, facts: ModelFacts) -> None:
    path = tmp_path / "long.jsonl"
    turns = [{"role": "user", "content": "word " * 900}, {"role": "assistant", "content": "yes"}]
    path.write_text(json.dumps({"messages": turns}))
    with pytest.raises(BadInputError, match="--max-prompt-tokens 400"):
        take(path, facts)


def test_synthetic_workloads_by_name(facts: ModelFacts) -> None:
    found = synthetic_workloads("fork, agent", facts, 2, seed=3)
    assert list(found) == ["fork", "agent"]
    with pytest.raises(BadInputError, match="--workloads"):
        synthetic_workloads("fork,", facts, 2, seed=3) and synthetic_workloads("", facts, 2, seed=3)
