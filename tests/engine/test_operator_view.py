"""What an operator sees of a running server: metrics, /server_info, `marconi top`, the tree, the dashboard."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from live_server import LiveServer, running
from prometheus import WANTED, Prometheus, prometheus

from marconi_ext.traces.script import draw_tokens
from sglang_hooks.observe.metrics import METRICS

pytestmark = pytest.mark.engine

SLOTS = 24
SAMPLE = re.compile(r"^([a-z_:]+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("memory") / "prefixes.jsonl"


@pytest.fixture(scope="module")
def live(model: Path, memory: Path) -> Iterator[LiveServer]:
    """A server with a tight pool after conversations that share their beginnings: states saved, hit, evicted."""
    options = {"max_mamba_cache_size": SLOTS, "max_running_requests": 4, "enable_metrics": True}
    options |= {"marconi_expose_tokens": "true", "marconi_remember": str(memory)}
    options["marconi_quotas"] = '{"batch": {"ceiling": 0.9}, "*": {"ceiling": 1.0}}'
    with running(model, log_level="info", **options) as live:
        ask(live, seed=0)
        yield live


def ask(live: LiveServer, seed: int, sessions: int = 16) -> None:
    rng = np.random.default_rng(seed)
    system = draw_tokens(rng, 200, 4_096).tolist()
    for _ in range(sessions):
        prompt = [*system, *draw_tokens(rng, 30, 4_096).tolist()]
        for _ in range(2):
            answer = live.generate(prompt, 4)
            prompt += [*answer.output_ids, *draw_tokens(rng, 20, 4_096).tolist()]


def scrape(live: LiveServer) -> dict[str, dict[str, float]]:
    """name -> labels -> value, once what was counted last has been published."""
    time.sleep(2.5)
    found: dict[str, dict[str, float]] = {}
    for name, labels, value in SAMPLE.findall(live.http.get("/metrics", follow_redirects=True).text):
        found.setdefault(name, {})[labels] = float(value)
    return found


def marconi(*arguments: str) -> str:
    command = [sys.executable, "-c", "from marconi_ext.cli import main; main()", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_metrics_say_what_server_info_says(live: LiveServer) -> None:
    metrics, stats = scrape(live), live.marconi()["stats"]
    assert stats["requests"] >= 32 and 0 < stats["hit_tokens"] <= stats["kv_tokens"] <= stats["prompt_tokens"]
    assert sum(stats["lost_tokens"].values()) == stats["kv_tokens"] - stats["hit_tokens"]
    for name, key in (
        ("marconi_requests_total", "requests"),
        ("marconi_prompt_tokens_total", "prompt_tokens"),
        ("marconi_hit_tokens_total", "hit_tokens"),
        ("marconi_kv_hit_tokens_total", "kv_tokens"),
    ):
        ((labels, value),) = metrics[name].items()
        assert value == stats[key], name
        assert 'tp_rank="0"' in labels and "model_name=" in labels
    for name, group in (
        ("marconi_lost_tokens_total", "lost_tokens"),
        ("marconi_states", "states"),
        ("marconi_saved_states_total", "saves"),
    ):
        assert sum(metrics[name].values()) == sum(stats[group].values()), name
    evicted = sum(row["states"] for row in stats["evictions"])
    assert sum(metrics["marconi_evicted_states_total"].values()) == evicted > 0
    assert sum(metrics["marconi_planning_failures_total"].values()) == 0


def test_states_held_are_those_saved_less_those_evicted(live: LiveServer) -> None:
    section = live.marconi()
    stats = section["stats"]
    evicted = sum(row["states"] for row in stats["evictions"])
    assert (
        sum(stats["states"].values()) == sum(stats["saves"].values()) - evicted == section["slots"]["cached"]
    )


def test_every_metric_is_exported(live: LiveServer) -> None:
    expected = {metric.name for metric in METRICS}
    if not live.marconi()["policy"]["parameters"]:
        expected.remove("marconi_parameter")  # a policy without any
    assert expected <= scrape(live).keys()


def test_top(live: LiveServer, tmp_path: Path) -> None:
    text = marconi("top", live.server.url, "--once", "--json", str(tmp_path / "top.jsonl"))
    seen = json.loads((tmp_path / "top.jsonl").read_text())
    stats = live.marconi()["stats"]
    assert seen["total"]["hit_percent"] == pytest.approx(100 * stats["hit_tokens"] / stats["prompt_tokens"])
    assert "recurrent states" in text and seen["running"] == 0


def test_watch_top_of_a_plain_server(live: LiveServer) -> None:
    """SGLang's own metrics say the same of hits as ours do."""
    seen = json.loads(marconi("watch", live.server.url, "--looks", "1", "--json", "-"))
    stats = live.marconi()["stats"]
    assert seen["engine"] == "SGLang"
    assert seen["hit_rate"] == pytest.approx(stats["hit_tokens"] / stats["prompt_tokens"], abs=0.01)


def test_tree(live: LiveServer, tmp_path: Path) -> None:
    """Its states are those that the census counts; token ids come only where asked for; then it is gone."""
    began = time.monotonic()
    marconi("tree", live.server.url, "--json", str(tmp_path / "tree.json"))
    (tree,) = json.loads((tmp_path / "tree.json").read_text())["ranks"]
    print(f"{len(tree['nodes'])} nodes, the command took {time.monotonic() - began:.2f} s")
    states = [node for node in tree["nodes"] if node["state"] == "device"]
    assert len(states) == live.marconi()["slots"]["cached"] and all(node["kind"] for node in states)
    depth = {node["id"]: node["depth_tokens"] for node in tree["nodes"]}
    for node in tree["nodes"]:
        assert node["parent"] is None or depth[node["parent"]] + node["edge_tokens"] == node["depth_tokens"]
    assert not any("tokens" in node for node in tree["nodes"])
    marconi("tree", live.server.url, "--tokens", "--json", str(tmp_path / "tokens.json"))
    (tree,) = json.loads((tmp_path / "tokens.json").read_text())["ranks"]
    assert all(len(node["tokens"]) == node["edge_tokens"] for node in tree["nodes"] if "tokens" in node)
    assert sum("tokens" in node for node in tree["nodes"]) == len(depth) - 1
    assert "tree" not in live.marconi()


def test_nothing_else_carries_token_ids_or_keys(live: LiveServer, tmp_path: Path) -> None:
    """Of a request with a salt, a key and ids of its own: not the metrics, nor /server_info, its tree or the log; and
    not when its prompt is pinned, when it is explained, or remembered: all that is switched on here."""
    prompt = list(range(2_001, 2_121))
    body = {
        "input_ids": prompt,
        "sampling_params": {"max_new_tokens": 8, "temperature": 0, "ignore_eos": True},
    }
    names = {"cache_salt": "salt-of-a-user", "extra_key": "key-of-a-user", "rid": "name-of-a-request"}
    body["sampling_params"]["custom_params"] = {"marconi": {"explain": True}}
    answered = live.http.post("/generate", json=body | names).json()
    output = answered["output_ids"]
    answered["meta_info"]["marconi"][0].pop("request")
    folder = tmp_path / "replayed"
    trace = tmp_path / "trace.jsonl"
    line = {"session_id": "0", "turn_id": 0, "ts": 0, "input_tokens": prompt, "output_tokens": output}
    trace.write_text(json.dumps(line))
    marconi("replay", "--url", live.server.url, "--trace", str(trace), "--out", str(folder))
    marconi("tree", live.server.url, "--json", str(folder / "tree.json"))
    said = {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()}
    said["explained in the answer"] = json.dumps(answered["meta_info"]["marconi"])
    prefix = {"input_ids": prompt[:-1], "name": "pinned", "cache_salt": names["cache_salt"]}
    (tmp_path / "prefix.jsonl").write_text(json.dumps(prefix | {"extra_key": names["extra_key"]}))
    said["pinned"] = marconi("pin", live.server.url, str(tmp_path / "prefix.jsonl"), "--json", "-")
    for name, value in (("request", names["rid"]), ("prompt", prompt)):
        command = {"do": "explain", name: value, "key": [1, 2]}
        asked = {"server_args": {f"marconi:{json.dumps(command)}": 1}}
        assert live.http.post("/set_internal_state", json=asked).json() == [True]
        answer = live.marconi()["answers"]["1"]
        assert answer.pop("request") in (names["rid"], None), "what was asked for by its name"
        assert answer["tokens"]["sent"], "sealed"
        said[f"explanation of a {name}"] = json.dumps(answer)
    said["metrics"] = live.http.get("/metrics", follow_redirects=True).text
    section = live.marconi()
    assert section.pop("answers") and section["pins"]["states"] == 1
    said["server_info"] = json.dumps(section)
    marconi("pin", live.server.url, "--remove", "all")
    said["log"] = live.server.log_text()
    assert len(said) > 5 and '"live": true' in said["server_info"]
    for name, text in said.items():
        for ids in (prompt[10:14], output[2:6]):
            together = r"\D{1,3}".join(map(str, ids))
            assert not re.search(rf"(?<!\d){together}(?!\d)", text), name
        assert not any(secret in text for secret in names.values()), name


def asked(
    live: LiveServer, prompt: list[int], rid: str, namespace: dict[str, str] | None = None, **wishes: bool
) -> dict:
    sampling = {
        "temperature": 0,
        "max_new_tokens": 3,
        "ignore_eos": True,
        "custom_params": {"marconi": wishes},
    }
    body = {"input_ids": prompt, "rid": rid, "sampling_params": sampling, **(namespace or {})}
    return live.http.post("/generate", json=body).json()


def test_explain(live: LiveServer, tmp_path: Path) -> None:
    """Of a prompt before it is sent, of the answer itself, and of its id afterwards: the same facts, and true ones."""
    rng = np.random.default_rng(7)
    system = draw_tokens(rng, 120, 4_096).tolist()
    asked(live, [*system, *draw_tokens(rng, 40, 4_096).tolist()], "first")
    prompt = [*system, *draw_tokens(rng, 40, 4_096).tolist()]
    (tmp_path / "prompt.jsonl").write_text(json.dumps({"input_ids": prompt}))
    before = json.loads(
        marconi("explain", live.server.url, "--prompt", str(tmp_path / "prompt.jsonl"), "--json", "-")
    )
    (before,) = before["explanations"]
    meta = asked(live, prompt, "second", explain=True)["meta_info"]
    (told,) = meta["marconi"]
    assert told["hit_tokens"] == meta["cached_tokens"] and told["kv_tokens"] == 120
    assert told["divergence"] == {"at_token": 120, "other_ways": 1} == before["divergence"]
    assert "tokens" not in told, "what others have asked goes to the operator alone"
    (after,) = json.loads(marconi("explain", live.server.url, "--request", "second", "--json", "-"))[
        "explanations"
    ]
    assert before["tokens"] == after["tokens"] and before["tokens"]["sent"][0] == prompt[120]
    for name in (
        "prompt_tokens",
        "hit_tokens",
        "kv_tokens",
        "nearest_state",
        "lost",
        "lost_tokens",
        "lost_flops",
    ):
        assert told[name] == before[name], name
    assert told["lost_tokens"] == 120 - told["hit_tokens"] > 0 and told["lost_flops"] > 0
    outcomes = {place["depth_tokens"]: place["outcome"] for place in told["wanted"]}
    assert outcomes[120] == "saved" and 159 in outcomes
    assert all(what == "saved" or what.startswith("refused: worth less") for what in outcomes.values())
    again = asked(live, [*prompt[:120], *prompt[125:]], "third", explain=True)["meta_info"]
    assert (
        again["marconi"][0]["nearest_state"] == {"depth_tokens": 120, "kind": "branch"}
        and again["cached_tokens"] == 120
    )
    text = marconi("explain", live.server.url, "--request", "second")
    assert "Token 120 is the first new one" in text and "no request had parted there before" in text


def test_a_request_that_is_not_stored_leaves_nothing(live: LiveServer) -> None:
    prompt = draw_tokens(np.random.default_rng(8), 150, 4_096).tolist()
    asked(live, prompt, "not-stored", store=False)
    live.assert_nothing_leaked()
    assert asked(live, prompt, "still-new", store=False)["meta_info"]["cached_tokens"] == 0
    asked(live, prompt, "stored")
    assert asked(live, prompt, "reuses", store=False)["meta_info"]["cached_tokens"] == 149
    refused = live.http.post(
        "/generate",
        json={"input_ids": prompt, "sampling_params": {"custom_params": {"marconi": {"stor": True}}}},
    )
    assert refused.status_code == 400 and "custom_params.marconi.stor" in refused.text
    live.assert_nothing_leaked()


def test_a_key_that_is_not_ours_is_still_sglangs(live: LiveServer) -> None:
    asked = {"server_args": {"marconi_tree": 9}}
    assert live.http.post("/set_internal_state", json=asked).json() == [False]
    asked = {"server_args": {"pp_max_micro_batch_size": 2}}
    assert live.http.post("/set_internal_state", json=asked).json() == [True]


def test_a_pinned_prefix_stays(live: LiveServer, tmp_path: Path) -> None:
    """It is warmed, pinned, seen by whoever looks, and reused to the token after more traffic than the pool holds."""
    prefix = draw_tokens(np.random.default_rng(9), 150, 4_096).tolist()
    (tmp_path / "system.jsonl").write_text(json.dumps({"input_ids": prefix, "name": "system"}))
    warmed = json.loads(
        marconi("warm", str(tmp_path / "system.jsonl"), "--url", live.server.url, "--json", "-")
    )
    assert warmed["prefixes"] == [
        {"name": "system", "tokens": 150, "reused_tokens": 0, "prefilled_tokens": 151}
    ]
    done = json.loads(
        marconi("pin", live.server.url, str(tmp_path / "system.jsonl"), "--expire", "600", "--json", "-")
    )
    (rank,) = done["ranks"]
    assert rank["budget"]["states"] == 2 and rank["pins"][0]["name"] == "system" and rank["states"] == 1
    ask(live, seed=10)
    found = asked(live, [*prefix, 1, 2, 3], "later", store=False)["meta_info"]["cached_tokens"]
    assert found == 150
    assert "pinned" in marconi("top", live.server.url, "--once")
    metrics = scrape(live)["marconi_pinned_states"]
    assert sorted(metrics.values()) == [1, 2]
    assert (
        json.loads(marconi("pin", live.server.url, "--remove", "all", "--json", "-"))["ranks"][0]["pins"]
        == []
    )


def test_after_a_flush_memory_warms_to_the_token(live: LiveServer, memory: Path) -> None:
    deadline = time.monotonic() + 60
    while not memory.exists():
        assert time.monotonic() < deadline, "nothing was remembered"
        live.marconi()
        time.sleep(1)
    live.server.flush_cache()
    learned = [json.loads(line) for line in memory.read_text().splitlines()]
    assert learned and memory.stat().st_mode & 0o077 == 0
    text = marconi("warm", str(memory), "--url", live.server.url)
    assert f"{len(learned)} prefixes" in text
    for one in learned:
        prefix = one["input_ids"]
        namespace = {name: one[name] for name in ("extra_key", "cache_salt") if name in one}
        answer = asked(live, [*prefix, 4_095, 7, 4_094], "after", namespace, store=False)
        assert answer["meta_info"]["cached_tokens"] == len(prefix)


def test_a_flush_is_counted(live: LiveServer) -> None:
    live.server.flush_cache()
    stats = live.marconi()["stats"]
    assert sum(stats["states"].values()) == 0
    assert sum(row["states"] for row in stats["evictions"] if row["reason"] == "flush") > 0


def test_promtool_finds_no_fault_with_our_metrics(live: LiveServer) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip(WANTED)
    text = live.http.get("/metrics", follow_redirects=True).text
    found = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    said = found.stdout + found.stderr
    assert "error while linting" not in said
    assert not [line for line in said.splitlines() if line.startswith("marconi_")], said


def test_every_panel_draws_what_prometheus_scraped(live: LiveServer, tmp_path: Path) -> None:
    """A real Prometheus scrapes the server while requests come; each query of the dashboard has a number then."""
    if shutil.which("prometheus") is None:
        pytest.skip(WANTED)
    dashboard = json.loads((files("marconi_ext") / "dashboards" / "grafana.json").read_text(encoding="utf-8"))
    panels = [(p["title"], t["expr"]) for p in dashboard["panels"] for t in p["targets"]]
    panels += [(a["name"], a["expr"]) for a in dashboard["annotations"]["list"]]
    may_be_empty = {"Tunings"}
    if not live.marconi()["policy"]["parameters"]:
        may_be_empty.add("Policy parameters")
    with prometheus(tmp_path, live.server.url.removeprefix("http://")) as scraper:
        scraper.wait_for("marconi_info")
        ask(live, seed=1, sessions=6)
        time.sleep(2)
        ask(live, seed=1, sessions=6)
        time.sleep(1.5)
        empty = {title for title, expression in panels if not numbers(scraper, expression)}
    assert empty <= may_be_empty


def numbers(scraper: Prometheus, expression: str) -> list[float]:
    """A panel's samples, with Grafana's variables filled in; NaN is none."""
    for variable, value in (("$model", ".*"), ("$instance", ".*"), ("$__rate_interval", "1m")):
        expression = expression.replace(variable, value)
    values = [float(sample["value"][1]) for sample in scraper.query(expression)]
    return [value for value in values if value == value]
