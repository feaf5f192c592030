"""The demo end to end against a stand-in server, and once, tiny, against the real engine."""

import json
import sys
from pathlib import Path

import pytest
from command import marconi
from processes import alive

from marconi_ext.commands.demo.run import DemoOptions, Watcher, as_json, run_demo
from marconi_ext.errors import BadInputError, CheckFailedError
from marconi_ext.models.attention_model import write_attention_model
from marconi_ext.models.toy_model import write_model
from marconi_ext.servers.arm_server import server_flags
from marconi_ext.servers.arms import choose_arms, known_arms, require_status
from marconi_ext.servers.engine_options import ModelFacts, environment, to_flags
from marconi_ext.servers.server import ServerError
from marconi_ext.traces.synthetic import scripts

STUB = (sys.executable, str(Path(__file__).parents[1] / "helpers" / "stub_server.py"))
LINE = "[2026-01-01 00:00:00] marconi-ext 0.1.0 live: checkpoints=branch,prompt,last slots=48"


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "toy")


def options(model: Path, arms: str, **changes) -> DemoOptions:
    workloads = {
        "agent": scripts("agent", sessions=3, turns=3, vocabulary=4_096),
        "fork": scripts("fork", sessions=2, vocabulary=4_096),
    }
    fields = {"cpu": True, "workloads": workloads, "launcher": STUB, "start_timeout_s": 20, **changes}
    return DemoOptions(model_path=model, arms=choose_arms(arms, 64), **fields)


@pytest.mark.parametrize("side_by_side", [False, True])
def test_an_attention_only_server_loses_exactly_nothing(model: Path, monkeypatch, side_by_side) -> None:
    monkeypatch.setenv("STUB_LINE", LINE)
    results = list(run_demo(options(model, "stock,marconi", side_by_side=side_by_side), quiet()))
    document = json.loads(json.dumps(as_json(results, {})))
    assert [arm["name"] for arm in document["arms"]] == ["stock", "marconi"]
    for arm in document["arms"]:
        assert arm["state_limited_loss"] == arm["first_divergence"] == arm["avoidable"] == 0
        assert arm["cached_tokens"] == arm["ideal_tokens"] > 0 and arm["prefill_ratio"] == 1
        assert (arm["requests"], arm["failed"], arm["unsent"]) == (9 + 16, 0, 0)
        assert set(arm["workloads"]) == {"agent", "fork"}
        assert arm["prompt_tokens"] == sum(w["prompt_tokens"] for w in arm["workloads"].values())
        assert arm["answers_differing"] == 0
    assert document["arms"][0]["status_line"] is None and document["arms"][1]["status_line"] == LINE


def quiet() -> Watcher:
    return Watcher()


def test_an_interrupt_stops_every_server(model: Path, monkeypatch, tmp_path: Path) -> None:
    class Interrupted(Watcher):
        def replaying(self, arm) -> None:
            raise KeyboardInterrupt

    monkeypatch.setenv("STUB_LINE", LINE)
    monkeypatch.setenv("STUB_CHILD", "1")
    with pytest.raises(KeyboardInterrupt):
        list(run_demo(options(model, "stock,marconi", side_by_side=True, logs=tmp_path), Interrupted()))
    logs = [(tmp_path / f"{arm}.log").read_text() for arm in ("stock", "marconi")]
    assert not any(alive(int(log.split("child ")[1].split()[0])) for log in logs)


def test_concurrent_requests_lose_nothing_either(model: Path) -> None:
    (result,) = run_demo(options(model, "stock", concurrency=8), quiet())
    assert result.total().state_limited_loss == 0
    assert not result.incomplete()


def test_an_arm_without_its_status_line_is_refused(model: Path) -> None:
    with pytest.raises(CheckFailedError, match="no line saying that the extension is live"):
        list(run_demo(options(model, "marconi"), quiet()))


def test_a_stock_arm_with_a_status_line_is_refused() -> None:
    arms = known_arms(64)
    with pytest.raises(CheckFailedError, match="nobody asked"):
        require_status(arms["stock"], f"hello\n{LINE}\n")
    assert require_status(arms["stock"], "hello") is None
    assert require_status(arms["marconi"], f"hello\n  {LINE}\n") == LINE
    with pytest.raises(CheckFailedError, match=r"It says: .*not live: no Mamba layer"):
        require_status(
            arms["marconi"], "marconi-ext 0.1.0: not live: no Mamba layer; serving as stock SGLang"
        )


def test_a_server_that_dies_ends_the_run_with_its_log(model: Path, monkeypatch) -> None:
    monkeypatch.setenv("STUB_MODE", "die")
    monkeypatch.setenv("STUB_FROM", "1000")
    with pytest.raises(ServerError, match=r"exit code 3(.|\n)*stub server starts"):
        list(run_demo(options(model, "stock"), quiet()))


@pytest.mark.parametrize("mode", ["http-500", "cut", "hang"])
def test_failed_requests_are_counted(model: Path, monkeypatch, mode: str) -> None:
    monkeypatch.setenv("STUB_MODE", mode)
    monkeypatch.setenv("STUB_FROM", "1300")
    (result,) = run_demo(options(model, "stock", request_timeout_s=0.5), quiet())
    total = result.total()
    assert total.failed > 0 and total.requests > 0 and result.incomplete()
    assert total.requests + total.failed + total.unsent == 9 + 16


def test_flags_name_both_pools_on_the_cpu(model: Path) -> None:
    wanted = options(model, "stock-track", state_slots=48, extra_flags=("--page-size", "16"))
    flags = server_flags(wanted, wanted.arms[0])
    assert flags[flags.index("--max-mamba-cache-size") + 1] == "48"
    assert flags[flags.index("--mamba-track-interval") + 1] == "64"
    assert flags[flags.index("--page-size") + 1] == "16" and "--disable-cuda-graph" in flags


def test_the_attention_arm_serves_the_attention_model(model: Path, tmp_path: Path) -> None:
    attention = write_attention_model(tmp_path / "attention", 4_096)
    wanted = options(model, "stock,pure-attention", attention_model=attention)
    paths = [server_flags(wanted, arm)[1] for arm in wanted.arms]
    assert paths == [str(model), str(attention)]
    assert ModelFacts(attention).architecture == "LlamaForCausalLM"


def test_options_and_environment(monkeypatch, tmp_path: Path, model: Path) -> None:
    assert to_flags({"a_b": True, "c": 3, "d": None, "e": False}) == ["--a-b", "--c", "3"]
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    monkeypatch.setenv("SGLANG_PLATFORM", "other")
    assert environment(cpu=True)["SGLANG_PLATFORM"] == "marconi_cpu"
    assert not {"SGLANG_USE_CPU_ENGINE", "SGLANG_PLATFORM"} & set(environment(cpu=False))
    monkeypatch.setenv("no_proxy", "example.org")
    asked_directly = environment(cpu=False)
    assert asked_directly["no_proxy"] == asked_directly["NO_PROXY"] == "example.org,127.0.0.1,localhost"
    monkeypatch.setenv("no_proxy", "*")
    assert environment(cpu=False)["no_proxy"] == "*"
    facts = ModelFacts(model)
    assert (facts.chunk_tokens, facts.vocabulary) == (64, 4_096)
    for content in (None, "{", "[]", "{}", '{"vocab_size": "all"}', '{"vocab_size": 9, "text_config": 1}'):
        if content:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(BadInputError, match="--model-path"):
            ModelFacts(tmp_path)


@pytest.mark.parametrize("arms", ["", "nonsense", "stock,stock"])
def test_arms_are_checked(arms: str) -> None:
    with pytest.raises(BadInputError, match="--arms"):
        choose_arms(arms, 64)


@pytest.mark.sglang
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arms", "best"), "--arms best"),
        (("--workloads", "holiday"), "--workloads holiday"),
        (("--model-path", "/nowhere"), "--model-path /nowhere"),
        (("--trace", "/nowhere"), "/nowhere: no such file"),
        (("--json", "/nowhere/x.json"), "--json /nowhere/x.json"),
        (("--model-chunk", "100"), "--model-chunk 100: chunk_size must be a power of two"),
        (("--model-chunk", "64", "--model-path", "/nowhere"), "--model-chunk is for the small model"),
        (("--concurrency", "0"), "concurrency"),
        (("--colour", "red"), "--colour"),
        (("--server-flags", '"abc'), "--server-flags '\"abc': No closing quotation"),
        (("--workloads", "agent", "--sessions", "1", "--logs", "/proc/nope"), "--logs /proc/nope"),
    ],
)
def test_bad_usage_names_the_flag_and_exits_2(arguments: tuple[str, ...], message: str) -> None:
    found = marconi("demo", *arguments)
    assert found.returncode == 2 and message in found.stderr, found.stderr


@pytest.mark.engine
def test_stock_and_extension_on_the_real_engine(tmp_path: Path) -> None:
    out = tmp_path / "demo.json"
    found = marconi(
        *("demo", "--workloads", "agent", "--sessions", "2", "--arms", "stock,marconi", "--json", str(out))
    )
    assert found.returncode == 0, found.stderr
    stock, ours = json.loads(out.read_text())["arms"]
    assert stock["requests"] == ours["requests"] == 16
    assert stock["avoidable"] > 1 and ours["avoidable"] == 0 == ours["answers_differing"]
    assert stock["ideal_tokens"] == ours["ideal_tokens"] > ours["cached_tokens"] > stock["cached_tokens"]
    assert "avoid-" in found.stdout
